//! Do all bytes get through TLS in whatever pieces, and does every fault end as it should?

use std::future::Future;

use proptest::prelude::*;
use rustls::client::Resumption;
use rustls::crypto::cipher::{MessageEncrypter, OutboundPlainMessage};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, ClientConfig, ConnectionTrafficSecrets, ContentType, HandshakeKind, ProtocolVersion,
    RootCertStore, SupportedCipherSuite, SupportedProtocolVersion,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

/// Of `localhost`, P-256, signed by itself, until 2126.
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBkzCCATigAwIBAgIUFgYvrbdSp+AGizP9UYMqwfm6HO0wCgYIKoZIzj0EAwIw\n\
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNjIxMjI1M1oYDzIxMjYxMTAy\n\
MjEyMjUzWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO\n\
PQMBBwNCAATAdoaB7QDttOQ3NHPQIVc+HNHDSSHG0v3R2+OxKiwI6LssM9iy5d59\n\
0VIHCG0lbNkicTNvC57dEMDeKIvCzCS+o2YwZDAdBgNVHQ4EFgQUv+HfPtLCBx93\n\
do5tw78co+2iLYIwHwYDVR0jBBgwFoAUv+HfPtLCBx93do5tw78co+2iLYIwFAYD\n\
VR0RBA0wC4IJbG9jYWxob3N0MAwGA1UdEwEB/wQCMAAwCgYIKoZIzj0EAwIDSQAw\n\
RgIhAI7rtjTiu5zZsq8FXjkVhBEtjfwFOJKVaEfePGDMFkT2AiEAmY+uXpZDIQ+O\n\
OisyKaSVhm7NKSOpXx79mSPQyUc5WFI=\n\
-----END CERTIFICATE-----";

const KEY: &str = "\
-----BEGIN PRIVATE KEY-----\n\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgvXRJEfBfbiwNABBt\n\
wUWASWjV3+izn8ABoQ4IJQKZS6yhRANCAATAdoaB7QDttOQ3NHPQIVc+HNHDSSHG\n\
0v3R2+OxKiwI6LssM9iy5d590VIHCG0lbNkicTNvC57dEMDeKIvCzCS+\n\
-----END PRIVATE KEY-----";

/// A socket that takes and gives a few bytes at a time, and has the other side wait between any two.
struct Drip {
    socket: DuplexStream,
    /// How many at a time, in turns.
    pieces: Vec<usize>,
    turn: usize,
    /// Whether the next byte that comes is another one than was sent.
    changes: bool,
}

impl Drip {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        self.turn += 1;
        if self.turn.is_multiple_of(2) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.pieces[self.turn / 2 % self.pieces.len()])
    }
}

impl AsyncRead for Drip {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let piece = ready!(self.poll_piece(cx)).min(buffer.remaining());
        let mut room = vec![0; piece];
        let mut read = ReadBuf::new(&mut room);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
        if let Some(last) = read.filled_mut().last_mut()
            && std::mem::take(&mut self.changes)
        {
            *last ^= 1;
        }
        buffer.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Drip {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let piece = ready!(self.poll_piece(cx)).min(bytes.len());
        Pin::new(&mut self.socket).poll_write(cx, &bytes[..piece])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

fn server() -> Arc<ServerConfig> {
    let chain = vec![CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let mut config = config.with_single_cert(chain, key).unwrap();
    config.ticketer = ring::Ticketer::new().unwrap();
    Arc::new(config)
}

fn client(version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_protocol_versions(&[version]).unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(1);
    config.enable_secret_extraction = true;
    Arc::new(config)
}

type Pair = (Box<Secured<Drip>>, TlsStream<DuplexStream>);

/// Both sides of a connection with room for so many bytes each way, after hands were shaken. Tickets need some 400, as
/// the client does not read them meanwhile.
async fn pair(
    pieces: &[usize],
    room: usize,
    (server, client): (&Arc<ServerConfig>, &Arc<ClientConfig>),
) -> Pair {
    let (near, far) = duplex(room);
    let near = Drip { socket: near, pieces: pieces.to_vec(), turn: 0, changes: false };
    let name = ServerName::try_from("localhost").unwrap();
    let (near, far) = tokio::join!(
        Secured::accept(Arc::clone(server), near),
        TlsConnector::from(Arc::clone(client)).connect(name, far)
    );
    (near.unwrap(), far.unwrap())
}

async fn pair_of(version: &'static SupportedProtocolVersion) -> Pair {
    pair(&[4096], 1 << 20, (&server(), &client(version))).await
}

/// Says something to the server, and hears it again.
async fn echo((near, far): &mut Pair, text: &[u8]) {
    let there = async {
        far.write_all(text).await.unwrap();
        far.flush().await.unwrap();
        let mut heard = vec![0; text.len()];
        far.read_exact(&mut heard).await.unwrap();
        assert!(heard == text, "{} bytes came back as others", text.len());
    };
    let back = async {
        let mut heard = vec![0; text.len()];
        near.read_exact(&mut heard).await.unwrap();
        near.write_all(&heard).await.unwrap();
    };
    tokio::join!(there, back);
}

fn in_time<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LONG, test).await.expect("it hangs") })
}

const LONG: std::time::Duration = std::time::Duration::from_secs(60);

/// Both, to their ends: a goodbye that is missing is an error to that client.
async fn all_through((mut near, mut far): Pair, text: &[u8]) {
    let there = async {
        far.write_all(text).await.unwrap();
        far.shutdown().await.unwrap();
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert!(heard == text, "{} bytes came back as {} others", text.len(), heard.len());
    };
    let back = async {
        let mut heard = Vec::new();
        near.read_to_end(&mut heard).await.unwrap();
        // The client said that it has no more to say, and still hears.
        near.write_all(&heard).await.unwrap();
        near.shutdown().await.unwrap();
    };
    tokio::join!(there, back);
}

#[test]
fn all_gets_through_byte_by_byte() {
    for version in [&TLS12, &TLS13] {
        in_time(async {
            all_through(pair(&[1], 4096, (&server(), &client(version))).await, &[7; 20_000]).await;
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn all_gets_through_whatever_the_pieces(
        pieces in proptest::collection::vec(1usize..5000, 1..12),
        room in prop_oneof![1000usize..5000, Just(1 << 20)],
        length in prop_oneof![0usize..300, 16_380usize..16_390, 0usize..40_000],
        is_new: bool,
    ) {
        let text: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let client = client(if is_new { &TLS13 } else { &TLS12 });
        in_time(async { all_through(pair(&pieces, room, (&server(), &client)).await, &text).await });
    }
}

#[test]
fn a_client_comes_back_by_a_ticket() {
    for version in [&TLS12, &TLS13] {
        let (server, client) = (server(), client(version));
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            in_time(async {
                let mut pair = pair(&[100], 1 << 20, (&server, &client)).await;
                echo(&mut pair, b"here I am").await;
                assert_eq!(pair.1.get_ref().1.handshake_kind(), Some(kind), "{version:?}");
            });
        }
    }
}

#[test]
fn who_says_nothing_keeps_no_room() {
    for version in [&TLS12, &TLS13] {
        in_time(async {
            let mut pair = pair_of(version).await;
            for length in [1, 50_000] {
                echo(&mut pair, &vec![1; length]).await;
                let near = &mut pair.0;
                let mut room = [0; 8];
                // A record that has been begun: by the time it is over, nothing is kept either.
                let read = poll_fn(|cx| {
                    Poll::Ready(Pin::new(&mut *near).poll_read(cx, &mut ReadBuf::new(&mut room)))
                });
                assert!(read.await.is_pending());
                let kept = [&near.unopened, &near.opened, &near.sealed].map(BytesMut::capacity);
                assert_eq!(kept, [0, 0, 0], "after {length}");
            }
        });
    }
    // The next size that the allocator has is 1,536.
    assert!(size_of::<Secured>() <= 1280, "{}", size_of::<Secured>());
}

#[test]
fn keys_change_while_bytes_go_to_and_fro() {
    in_time(async {
        let mut pair = pair_of(&TLS13).await;
        for length in [1, 100, 40_000] {
            pair.1.get_mut().1.refresh_traffic_keys().unwrap();
            echo(&mut pair, &vec![2; length]).await;
        }
    });
}

#[test]
fn a_client_that_goes_away_without_a_goodbye_has_ended() {
    for version in [&TLS12, &TLS13] {
        in_time(async {
            let (mut near, mut far) = pair_of(version).await;
            far.write_all(b"half of").await.unwrap();
            far.flush().await.unwrap();
            let (mut below, _) = far.into_inner();
            below.write_all(&[23, 3, 3, 0, 99, 1]).await.unwrap();
            drop(below);
            let mut heard = Vec::new();
            near.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"half of");
        });
    }
}

#[test]
fn bytes_are_acknowledged_when_the_socket_has_them_all() {
    in_time(async {
        let (mut near, mut far) = pair(&[4096], 1000, (&server(), &client(&TLS13))).await;
        let text: Vec<u8> = (0..100_000).map(|at| (at % 251) as u8).collect();
        for _ in 0..10 {
            let written = poll_fn(|cx| Poll::Ready(Pin::new(&mut near).poll_write(cx, &text))).await;
            assert!(written.is_pending(), "{written:?}");
            assert!(near.sealed.len() <= MAX_SEALED_BYTES + 300, "{} wait", near.sealed.len());
        }
        let mut heard = vec![0; text.len()];
        let (written, read) = tokio::join!(near.write_all(&text), far.read_exact(&mut heard));
        written.unwrap();
        read.unwrap();
        assert!(heard == text);
    });
}

#[test]
fn what_is_no_tls_is_told_so() {
    in_time(async {
        let (near, mut far) = duplex(1 << 20);
        far.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut heard = Vec::new();
        let (refused, _) = tokio::join!(Secured::accept(server(), near), async {
            let mut alert = [0; 7];
            far.read_exact(&mut alert).await.unwrap();
            heard.extend(alert);
            drop(far);
        });
        assert_eq!(refused.err().map(|error| error.kind()), Some(io::ErrorKind::InvalidData));
        // A fatal alert (RFC 8446 §6).
        assert_eq!((heard[0], heard[5]), (21, 2), "{heard:?}");
    });
}

#[test]
fn a_greeting_is_no_longer_than_it_may_be() {
    in_time(async {
        let (near, mut far) = duplex(1 << 20);
        // A greeting of 65,280 bytes, in a record of 16,384.
        far.write_all(&[22, 3, 1, 0x40, 0, 1, 0, 0xff, 0]).await.unwrap();
        far.write_all(&[0; 16_380]).await.unwrap();
        far.shutdown().await.unwrap();
        let refused = Secured::accept(server(), near).await.err().map(|error| error.to_string());
        assert_eq!(refused.as_deref(), Some("the handshake is longer than it may be"));
    });
}

#[test]
fn a_client_that_goes_away_meanwhile_is_let_go() {
    in_time(async {
        let (near, far) = duplex(1 << 20);
        drop(far);
        let refused = Secured::accept(server(), near).await.err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::UnexpectedEof));
    });
}

#[test]
fn what_was_changed_on_the_way_ends_the_connection_and_the_client_is_told() {
    for version in [&TLS12, &TLS13] {
        in_time(async {
            let (mut near, mut far) = pair_of(version).await;
            echo_once(&mut near, &mut far).await;
            far.write_all(b"is changed").await.unwrap();
            far.flush().await.unwrap();
            near.socket.changes = true;
            let mut heard = Vec::new();
            let error = near.read_to_end(&mut heard).await.unwrap_err();
            assert_eq!((error.kind(), heard.len()), (io::ErrorKind::InvalidData, 0));
            assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);
            assert_eq!(near.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            near.shutdown().await.unwrap();
            let told = far.read(&mut [0; 8]).await.unwrap_err().to_string();
            assert!(told.contains(&format!("{:?}", AlertDescription::BadRecordMac)), "{told}");
        });
    }
}

async fn echo_once(near: &mut Box<Secured<Drip>>, far: &mut TlsStream<DuplexStream>) {
    near.write_all(b"so that tickets are read").await.unwrap();
    far.read_exact(&mut [0; 24]).await.unwrap();
}

#[test]
fn a_message_of_tls_itself_does_not_wait_for_its_rest_for_ever() {
    in_time(async {
        let (mut near, mut far) = pair_of(&TLS13).await;
        echo_once(&mut near, &mut far).await;
        let (mut below, connection) = far.into_inner();
        let (mut seal, mut number) = sealing(connection);
        // A change of keys that says it has 65,280 bytes, one in each record.
        let sent = async {
            let mut byte = [24, 0, 0xff].into_iter();
            loop {
                let payload = [byte.next().unwrap_or_default()];
                let record = OutboundPlainMessage {
                    typ: ContentType::Handshake,
                    version: ProtocolVersion::TLSv1_2,
                    payload: payload.as_slice().into(),
                };
                let record = seal.encrypt(record, number).unwrap().encode();
                number += 1;
                if below.write_all(&record).await.is_err() {
                    break;
                }
            }
        };
        let refused = async {
            let error = near.read(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.to_string(), "a message of TLS is longer than it may be");
            assert!(near.unopened.len() <= MAX_UNOPENED_BYTES + READ_BYTES);
            drop(near);
        };
        tokio::join!(sent, refused);
    });
}

/// What a client of TLS 1.3 seals with, and the number of its next record.
fn sealing(connection: rustls::ClientConnection) -> (Box<dyn MessageEncrypter>, u64) {
    let Some(SupportedCipherSuite::Tls13(suite)) = connection.negotiated_cipher_suite() else {
        panic!("another version")
    };
    let (number, secrets) = connection.dangerous_extract_secrets().unwrap().tx;
    let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("another cipher") };
    (suite.aead_alg.encrypter(key, iv), number)
}
