//! What is kept of a client that has yet to say its first word? No more than it has sent: hyper's own buffers, some
//! 25 KB, are there for whoever has sent a whole head.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes taken at once, while nobody knows who sends them.
const READ_BYTES: usize = 1024;

/// Reads until hyper can make something of it: a whole head, `max_bytes` of one, or what can be none. At the end of
/// input it is what there was.
///
/// # Errors
/// When the connection is reset.
pub(super) async fn read<S: AsyncRead + Unpin>(stream: &mut S, max_bytes: usize) -> io::Result<BytesMut> {
    let mut head = BytesMut::new();
    let mut looked_at = 0;
    while head.len() < max_bytes && !is_for_hyper(&head, looked_at) {
        looked_at = head.len();
        head.reserve(READ_BYTES.min(max_bytes - head.len()));
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(head)
}

/// True when a line without a word ends the head, or no head begins or goes on like that. Of the bytes, `looked_at` are
/// known not to.
fn is_for_hyper(head: &[u8], looked_at: usize) -> bool {
    let is_end = |at: &[u8]| at.starts_with(b"\n\n") || at.starts_with(b"\n\r\n");
    let fresh = head.get(looked_at.saturating_sub(2)..).unwrap_or_default();
    let no_text = |byte: &u8| byte.is_ascii_control() && !matches!(byte, b'\r' | b'\n' | b'\t');
    let is_over = (0..fresh.len()).any(|at| fresh.get(at..).is_some_and(is_end));
    is_over || fresh.iter().any(no_text) || fresh.contains(&b'\n') && begins_with_no_request(head)
}

/// True when the first line with a word is whole, and names no version of HTTP, as RFC 9112 §3 has it.
fn begins_with_no_request(head: &[u8]) -> bool {
    let line = head.split_inclusive(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty());
    line.is_some_and(|line| line.ends_with(b"\n") && !line.windows(6).any(|part| part == b" HTTP/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn opening(parts: &[&[u8]], max_bytes: usize) -> Vec<u8> {
        let (mut client, mut server) = tokio::io::duplex(64 * 1024);
        let reading = async move { read(&mut server, max_bytes).await.unwrap().to_vec() };
        let writing = async {
            for part in parts {
                tokio::io::AsyncWriteExt::write_all(&mut client, part).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        };
        // The client stays: only what it sent ends the wait.
        let (read, _client) = tokio::join!(reading, writing);
        read
    }

    #[tokio::test]
    async fn a_head_is_read_to_its_end_however_it_comes() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let bytes: Vec<&[u8]> = head.chunks(1).collect();
        for parts in [bytes, head.chunks(7).collect(), vec![head.as_slice()]] {
            assert_eq!(opening(&parts, 8192).await, head);
        }
        for end in [b"G\n\n".as_slice(), b"G\n\r\n", b"G\r\n\r\n", b"\r\n\r\n"] {
            assert_eq!(opening(&[end], 8192).await, end);
        }
    }

    #[tokio::test]
    async fn what_is_no_head_is_not_waited_for() {
        for first in [
            b"\x10\x0c\0\x04MQTT".as_slice(),
            b"\x16\x03\x01\x02\0\x01",
            b"GET /\0",
            b"\x40\x01\0\x07",
            b"PROXY TCP4 ::\r\n",
        ] {
            assert_eq!(opening(&[first], 8192).await, first);
        }
        let long = vec![b'x'; 10_000];
        assert_eq!(opening(&[&long], 8192).await.len(), 8192);
    }

    #[tokio::test]
    async fn the_end_of_input_is_the_end() {
        let (client, mut server) = tokio::io::duplex(64);
        drop(client);
        assert!(read(&mut server, 8192).await.unwrap().is_empty());
    }
}
