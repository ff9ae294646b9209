//! Which settings there are: each declared once here, and everything else is made from the declaration.
//!
//! One TOML file serves all services, a section for each. Stronger than the file is the environment
//! (`SWITCHBOARD_MQTT__LISTEN`), stronger still are flags (`--set mqtt.listen=…`). Unknown settings are
//! refused, and every fault of all three is reported together.

mod customers;
mod declare;
mod limit;
mod load;
mod networks;
mod readers;
mod reload;
mod show;
mod soften;
mod value;

pub use customers::{Customers, MAX_CUSTOMERS};
pub use load::{Fault, Faults, Flag, Loaded, Source, Sources, env_name};
pub use networks::{Networks, network};
pub use readers::{SERVICES, is_read_by, readers};
pub use reload::{Change, Reload};
pub use show::{changed, env_names, print, reference, sample};
pub use soften::{Softened, softened};
pub use value::{LogFormat, Secret};

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use limit::{Anything, HttpEndpoint, LogFilter, NatsServers, Origins, SubjectToken};
use load::Checks;

declare::settings! {
    /// How this process reaches NATS, and what it keeps there.
    [nats] Nats {
        /// Server to connect to; several of a cluster after commas. Without user and password, which have settings
        /// of their own. A server that cannot be reached is tried again for as long as the process lives.
        url: String = "nats://127.0.0.1:4222".to_owned(), NatsServers;
        /// First token of every subject and bucket: systems with different prefixes share a NATS account unnoticed.
        prefix: String = "swb".to_owned(), SubjectToken;
        /// User name; empty: none. Goes together with a password. In it, and in `store_user`, `password_file` and
        /// `credentials_file`, `{service}` stands for the service that connects: each of a process with several
        /// (`switchboard-node`) has rights of its own.
        user: Option<String> = None, Anything;
        /// Password of the user; empty: none. Never printed or logged. Better given by the environment than by a file.
        password: Option<Secret> = None, Anything;
        /// File with the password of the user, instead of `password`; empty: none. Read again each time that the
        /// process connects, so that a new one needs no restart.
        password_file: Option<PathBuf> = None, Anything;
        /// User name of a further connection, for JetStream alone, with the same password: in a NATS account where the
        /// replies of JetStream reach nothing else (`deploy/nats`), its API under `<prefix>.js`. The same name as
        /// `user`: one connection does for both. Empty: JetStream is in the account of `user`, as NATS has it.
        store_user: Option<String> = None, Anything;
        /// File with NATS credentials (JWT and seed), instead of user and password; empty: none. Read again each time
        /// that the process connects.
        credentials_file: Option<PathBuf> = None, Anything;
        /// Certificates (PEM) of who vouches for NATS' servers: they are reached over TLS alone, and nobody else's word
        /// counts. Read again each time that the process connects. Empty: TLS where the server asks for it or `url`
        /// says `tls://`, with the authorities of the system.
        tls_ca_file: Option<PathBuf> = None, Anything;
        /// Whether a nats-server below 2.12.12, or of 2.14 below 2.14.3, is taken: it has known security advisories.
        allow_vulnerable_server: bool = false, Anything;
        /// Copies of each JetStream bucket: 1 on a single server, 3 or 5 in a cluster. With fewer servers than copies
        /// buckets cannot be made, and no service becomes ready.
        replicas: u16 = 1, 1..=5;
        /// Milliseconds that one attempt to connect may take; then the next server is tried.
        connect_timeout_ms: u64 = 5_000, 100..=60_000;
        /// Milliseconds that one message may wait to be taken by the connection; then the call ends as unavailable.
        send_timeout_ms: u64 = 1_000, 10..=60_000;
        /// Questions a process may have open on NATS for calls; a further one is refused at once. It may have as many
        /// of its own beside them, as about who a device is.
        max_pending_asks: usize = 65_536, 1..=10_000_000;
        /// Whether services of one process hand each other their messages in memory. Otherwise, and what others hear,
        /// too, goes through NATS.
        local_delivery: bool = true, Anything;
    }

    /// The device API, the same over every protocol.
    [device_api] DeviceApi {
        /// Entries of one `getDevices` answer; further ones are left to the next page.
        max_devices_per_customer: usize = 1_024, 1..=1_000_000, reloaded;
        /// Entries of an answer to a `getDevices` that goes on behind a device (`after`) and says no `limit`.
        max_devices_per_page: usize = 256, 1..=1_000_000, reloaded;
        /// Milliseconds a call has when it names no timeout. At most `max_timeout_ms`.
        default_timeout_ms: u32 = 20_000, 1..=3_600_000, reloaded;
        /// Milliseconds a call may ask for; more is refused ("Timeout is too large!").
        max_timeout_ms: u32 = 60_000, 1..=3_600_000, reloaded;
        /// Milliseconds a call waits for an offline target to connect, when it does not say; 0: not at all.
        /// At most `max_timeout_ms`.
        default_connect_timeout_ms: u32 = 0, 0..=3_600_000, reloaded;
        /// Whether a device of another customer reads as "Target device not found!" instead of "not allowed".
        conceal_foreign_devices: bool = false, Anything, reloaded;
        /// Whether the message that a target reads names who calls and how long an answer is of use, as the members
        /// `caller` and `expiresMs`. Firmware that takes no further members must not be sent them; over MQTT 5 and HTTP
        /// properties and headers say the same in any case.
        tell_caller_in_body: bool = false, Anything, reloaded;
    }

    /// What one customer may take of what all share.
    [shares] Shares {
        /// Percent of a node's or a router's places that one customer may hold, and at least one of each: calls in
        /// flight, calls for its devices, connections, devices that are kept in mind. A further one ends as "Too many
        /// requests!", or is refused (MQTT 3 / 0x9F). 100: as many as there are.
        per_customer_percent: u16 = 10, 1..=100, reloaded;
        /// Percent of the places for calls that those may hold which wait for their target to connect
        /// (`connectTimeout`): of a customer's places, and of all together.
        waiting_percent: u16 = 50, 1..=100, reloaded;
    }

    /// The node that devices connect to.
    [ingress] Ingress {
        /// Connections of this node, authenticated or not; a further one is refused (MQTT 3 / 0x9F). Each takes a file
        /// descriptor, and 128 are kept for the rest: more than the system allows a process (`ulimit -Hn`) is an error
        /// at start. 0: 100,000, or as many as are allowed, if those are fewer.
        max_connections: usize = 0, 0..=10_000_000;
        /// MQTT connections that one device may have to this node; one more ends the oldest that only calls (MQTT 5:
        /// 0x8E).
        max_connections_per_device: usize = 32, 1..=65_535, reloaded;
        /// Connections that one address may have to this node, an IPv6 one with its whole /64; a further one is closed.
        /// 0: no limit. Behind a balancer, all of them come from its address.
        max_connections_per_address: usize = 0, 0..=10_000_000;
        /// Packets or requests that one connection may send a second, and at once after a pause; what is too fast is
        /// read later. 0: no limit.
        requests_per_second_per_connection: u32 = 1_000, 0..=1_000_000, reloaded;
        /// Milliseconds from the accepted connection to its complete CONNECT; then it is closed.
        connect_timeout_ms: u64 = 10_000, 100..=600_000, reloaded;
        /// Milliseconds the authorizer may take over a device's credentials; then the device is refused (MQTT 3 /
        /// 0x88).
        authenticate_timeout_ms: u64 = 5_000, 10..=600_000, reloaded;
        /// Access tokens that nobody has, a second on average, from one source: an IPv4 address, or the /64 of an IPv6
        /// one (a token bucket; CoAP's, whose senders can be forged, is one of its own). Further ones wait up to 2 s
        /// for their turn, then they are refused (MQTT 3 / 0x9F, HTTP 429, CoAP 4.29). Tokens that were let in by this
        /// node lately pass. 0: no limit, where all devices come from one address: name the proxies that say from
        /// which (`mqtt.trusted_proxies`, `http.trusted_proxies`) if there are any.
        guesses_per_second_per_source: u32 = 1, 0..=1_000_000, reloaded;
        /// Access tokens that nobody has, at once from one source after a pause: the depth of that bucket.
        guess_burst_per_source: u32 = 60, 1..=1_000_000, reloaded;
        /// Access tokens that nobody has, a second on average, from all sources together. Where it is reached, sources
        /// that have sent one within a minute are refused, and tokens from others wait for their turn. 0: no limit.
        guesses_per_second: u32 = 100, 0..=1_000_000, reloaded;
        /// Access tokens that nobody has, at once from all sources after a pause: the depth of that bucket.
        guess_burst: u32 = 1_000, 1..=1_000_000, reloaded;
        /// Milliseconds for which the node remembers that nobody has an access token, and does not ask again. When a
        /// device changes it forgets that at once. 0: not at all.
        unknown_token_cache_ms: u64 = 2_000, 0..=60_000, reloaded;
        /// Calls that one device may have open as caller on one node, over all its sessions; a further one ends as
        /// "Too many requests!".
        max_calls_in_flight_per_caller: usize = 100, 1..=65_535, reloaded;
        /// Calls that one session may have open as target; a further one ends as "Too many requests!".
        max_calls_in_flight_per_target: usize = 100, 1..=65_535, reloaded;
        /// Calls a second that one device may make on average on one node (a token bucket); one above ends as
        /// "Too many requests!". 0: no limit.
        calls_per_second_per_device: u32 = 100, 0..=1_000_000, reloaded;
        /// Calls that one device may make at once after a pause: the depth of that bucket.
        call_burst_per_device: u32 = 200, 1..=1_000_000, reloaded;
        /// Calls and lists a second that all devices of a customer may ask for on one node, and at once after a pause;
        /// one above ends as "Too many requests!". 0: as often as a hundred devices may call.
        calls_per_second_per_customer: u32 = 0, 0..=100_000_000, reloaded;
        /// Telemetry and attributes messages a second that one device may send on average on one node (a token
        /// bucket); one above is refused, or waits where its device cannot be told (MQTT 3.1.1, QoS 0). 0: no limit.
        uplinks_per_second_per_device: u32 = 100, 0..=1_000_000, reloaded;
        /// Telemetry and attributes messages that one device may send at once after a pause.
        uplink_burst_per_device: u32 = 200, 1..=1_000_000, reloaded;
        /// Milliseconds that NATS may take to take over telemetry or attributes; then the device is told that it was
        /// not taken, or not acknowledged.
        uplink_timeout_ms: u64 = 5_000, 10..=600_000, reloaded;
        /// Calls that may wait at a session to be written to its device; a further one ends as "Too many requests!".
        max_mailbox_calls: usize = 64, 1..=65_535, reloaded;
        /// Calls that may wait at this node's sessions, and be open there, at once; a further one ends as "Too many
        /// requests!".
        max_deliveries: usize = 65_536, 1..=10_000_000, reloaded;
        /// Bytes that may wait for one device to read them; a device that lets more pile up is disconnected. Also of
        /// the calls that wait at a session, beyond which one ends as "Too many requests!". At least
        /// `mqtt.max_packet_bytes`.
        max_outbound_bytes: usize = 1_048_576, 4_096..=1_073_741_824;
        /// Milliseconds that writing a claim may take; then the SUBSCRIBE behind it is answered as failed.
        claim_timeout_ms: u64 = 5_000, 10..=600_000;
        /// Claims that this node has the store write at once; further ones wait for half of `claim_timeout_ms`. When
        /// more devices come back than the store keeps up with, what it writes is then never in vain.
        max_claims_in_flight: usize = 256, 1..=65_535;
        /// Milliseconds without renewal after which this node counts as dead and its claims as void; renewed at a
        /// third.
        lease_ms: u64 = 15_000, 1_000..=600_000;
        /// Milliseconds that this node may take to end. Its devices are sent away in the first half of them; a call in
        /// flight may end until they are over, then it is cut off.
        drain_ms: u64 = 10_000, 0..=600_000, reloaded;
        /// Devices that are sent away a second when the node is evacuated or has more than its part, unless the command
        /// says another number; when the node stops, as many more as `drain_ms` takes.
        shed_per_second: u32 = 500, 1..=1_000_000, reloaded;
        /// Milliseconds that a call waits for a device that its node has sent away, within the call's own time: as long
        /// as devices take to come back. Then it is offline, unless the caller waits for longer. 0: not at all.
        handover_ms: u64 = 5_000, 0..=60_000;
        /// Milliseconds for which a node that has devices stays ready while NATS is away (`/readyz` says so): all nodes
        /// lose it at once, and a balancer that leaves them all may cut what is connected. Meanwhile who is new is
        /// refused at once. 0: not at all.
        ready_without_nats_ms: u64 = 20_000, 0..=600_000, reloaded;
        /// Customers that the node tells metrics of, by their ids: each is a hundred series that Prometheus keeps.
        measured_customers: Customers = Customers::default(), Anything;
        /// Claims written again a second after NATS came back or lost its memory.
        reclaim_per_second: u32 = 5_000, 1..=1_000_000, reloaded;
        /// Threads of the process, of `switchboard up` and `switchboard-node` too; 0: one for each core. One thread
        /// spends the least CPU on a call, and further processes share the work as well as further threads do.
        worker_threads: u16 = 1, 0..=1_024;
    }

    /// MQTT 3.1.1 and 5, both on one port.
    [mqtt] Mqtt {
        /// Address to listen on. Loopback unless told: 0.0.0.0:1883 is every IPv4 address of the machine.
        listen: SocketAddr = loopback(1883), Anything;
        /// Address for MQTT over TLS; not listened on without `tls.certificate_file`.
        tls_listen: SocketAddr = loopback(8883), Anything;
        /// Proxies in front of MQTT, by their addresses. Each of their connections must begin with the PROXY protocol,
        /// version 1 or 2, which says who is behind it; else it is closed. From anybody else it is no MQTT.
        trusted_proxies: Networks = Networks::default(), Anything, reloaded;
        /// Bytes of one packet; a larger one closes the connection (v5: 0x95). Stay well below `max_payload` of NATS,
        /// 1 MiB unless set there: it carries a call's body in a message of its own.
        max_packet_bytes: u32 = 65_536, 1_024..=1_048_576;
        /// Bytes of one packet before the device is known, hence of its CONNECT; a larger one closes the connection.
        /// At most `max_packet_bytes`.
        max_packet_bytes_before_authentication: u32 = 4_096, 256..=65_536;
        /// Seconds of keep-alive that a device may ask for; 0 ("none") and larger ones are brought down to it
        /// (v5: told so). A device silent for 1.5 times its keep-alive is disconnected.
        max_keep_alive_s: u16 = 1_200, 5..=43_690, reloaded;
        /// QoS 1 messages in flight to the server that a v5 device may have open (Receive Maximum); more closes (0x93).
        receive_maximum: u16 = 100, 1..=65_535;
        /// Topic aliases that a v5 device may set up (Topic Alias Maximum); 0: none. A higher one closes (0x94).
        topic_alias_maximum: u16 = 16, 0..=1_024;
        /// Where a v5 device is to go that this node sends away (Server Reference, 0x9C): host:port, several after
        /// spaces, such as the balancer's name. Empty: it is told 0x8B, and comes back as it came.
        server_reference: Option<String> = None, Anything;
        /// Filters that one session may be subscribed to; a further one is refused in the SUBACK (0x80, v5: 0x97).
        max_subscriptions: usize = 16, 1..=1_024, reloaded;
    }

    /// HTTP/1.1: requests, long polls and their answers, and MQTT over WebSocket at `/mqtt`.
    [http] Http {
        /// Address to listen on. Loopback unless told: 0.0.0.0:8080 is every IPv4 address of the machine.
        listen: SocketAddr = loopback(8080), Anything;
        /// Address for HTTPS, and for MQTT over WebSocket under TLS; not listened on without `tls.certificate_file`.
        tls_listen: SocketAddr = loopback(8443), Anything;
        /// Proxies in front of HTTP, by their addresses. `X-Forwarded-For` is believed as far as they wrote it; anybody
        /// else's counts for nothing.
        trusted_proxies: Networks = Networks::default(), Anything, reloaded;
        /// Whether each connection of `http.trusted_proxies` must begin with the PROXY protocol, version 1 or 2, before
        /// TLS and HTTP.
        proxy_protocol: bool = false, Anything;
        /// Bytes of one request's body; a larger one is refused (413). Stay well below `max_payload` of NATS, 1 MiB
        /// unless set there.
        max_body_bytes: usize = 65_536, 1_024..=1_048_576;
        /// Milliseconds a poll waits for a call when it does not say. At most `max_poll_timeout_ms`.
        poll_timeout_ms: u64 = 60_000, 1..=3_600_000, reloaded;
        /// Milliseconds a poll may ask for; more is refused (400).
        max_poll_timeout_ms: u64 = 300_000, 1..=3_600_000, reloaded;
        /// Milliseconds a device stays callable after its last poll: a call that comes meanwhile waits for the next.
        poll_grace_ms: u64 = 5_000, 0..=3_600_000, reloaded;
        /// Polls of one device that may wait on one node; a further one is refused (429).
        max_polls_per_device: usize = 16, 1..=65_535, reloaded;
        /// Milliseconds from the accepted connection, or the first byte of a further request, to a request's complete
        /// head; then the connection is closed.
        header_timeout_ms: u64 = 10_000, 100..=3_600_000, reloaded;
        /// Milliseconds a connection is kept after an answer for a further request to begin, once a device has shown
        /// its token there; before that, `header_timeout_ms`.
        idle_timeout_ms: u64 = 60_000, 100..=3_600_000, reloaded;
        /// Milliseconds a request's body may take to come (408), and a client not to read a byte of its answer; then
        /// the connection is closed.
        request_timeout_ms: u64 = 10_000, 100..=600_000, reloaded;
        /// Devices that this node keeps in mind at once; a request of a further one is refused (503).
        max_sessions: usize = 100_000, 1..=10_000_000;
        /// Milliseconds for which a device is kept in mind after its last request, so that its next one needs no
        /// question to the authorizer. One that changes in the registry is forgotten at once.
        session_idle_ms: u64 = 60_000, 100..=3_600_000;
        /// Origins whose web pages may use the device API (CORS), as https://app.example, several after commas; `*`:
        /// all, since a token stands in each path and cookies count for nothing. Empty: none.
        cors_origins: Option<String> = Some("*".to_owned()), Origins;
    }

    /// The certificate for devices that come over TLS (1.2 and 1.3), MQTT and HTTP alike.
    [tls] Tls {
        /// File with the certificate in PEM, and behind it those that it was issued with; empty: no TLS. The files are
        /// read again when they change.
        certificate_file: Option<PathBuf> = None, Anything;
        /// File with the certificate's private key in PEM.
        key_file: Option<PathBuf> = None, Anything;
        /// Milliseconds a TLS handshake may take; then the connection is closed.
        handshake_timeout_ms: u64 = 10_000, 100..=600_000;
        /// Milliseconds between two looks at whether the files have changed.
        reload_check_ms: u64 = 10_000, 100..=86_400_000;
    }

    /// CoAP over UDP (RFC 7252), with Observe (RFC 7641) and block-wise transfer (RFC 7959).
    [coap] Coap {
        /// Address to listen on. Loopback unless told: 0.0.0.0:5683 is every IPv4 address of the machine.
        listen: SocketAddr = loopback(5683), Anything;
        /// Bytes of one request's body, over all its blocks; a larger one is refused (4.13). Stay well below
        /// `max_payload` of NATS, 1 MiB unless set there.
        max_body_bytes: usize = 65_536, 1_024..=1_048_576;
        /// Milliseconds until a confirmable message is first sent again, times 1 to 1.5 at random and doubled each
        /// time (ACK_TIMEOUT, RFC 7252 §4.8).
        ack_timeout_ms: u64 = 2_000, 10..=60_000;
        /// How often a confirmable message is sent again until its device is given up (MAX_RETRANSMIT, RFC 7252 §4.8).
        max_retransmit: u16 = 4, 0..=10;
        /// Milliseconds for which a request is remembered, so that its retransmission is not a second request
        /// (EXCHANGE_LIFETIME, RFC 7252 §4.8.2).
        exchange_lifetime_ms: u64 = 247_000, 1_000..=600_000;
        /// Requests that are remembered at once, each with its answer's datagram: about 300 bytes, 1.3 KB at most. Over
        /// it the oldest that have been answered are forgotten early; when none has, a request is refused (5.03).
        max_exchanges: usize = 100_000, 100..=10_000_000;
        /// Milliseconds an answer may take to come with the acknowledgement; later it comes as a separate response.
        separate_after_ms: u64 = 200, 0..=2_000, reloaded;
        /// Devices that this node keeps in mind at once; a request of a further one is refused (5.03).
        max_sessions: usize = 100_000, 1..=10_000_000;
        /// Milliseconds for which a device is kept in mind after its last request, so that its next one needs no
        /// question to the authorizer. One that changes in the registry is forgotten at once.
        session_idle_ms: u64 = 60_000, 100..=3_600_000;
        /// Devices that observe their calls on this node; a further one is refused (5.03).
        max_observers: usize = 50_000, 1..=10_000_000, reloaded;
        /// Milliseconds after which a device that observes, and to which nothing was sent meanwhile, is pinged; when it
        /// does not answer, it is dropped. 0: never. Shorter than whatever stands between remembers a quiet flow, or
        /// calls leave from an address that no device knows: two minutes are usual (conntrack of Linux, hence a Service
        /// of Kubernetes, and cloud balancers), 30 s where a NAT is stricter.
        observe_check_ms: u64 = 90_000, 0..=86_400_000;
        /// Bodies in transfer block by block, up and down together; over it the one that has been idle for longest is
        /// dropped. Each takes at most `max_body_bytes`.
        max_block_transfers: usize = 1_024, 1..=1_000_000;
        /// Milliseconds a transfer may pause between two blocks; then it is dropped.
        block_timeout_ms: u64 = 60_000, 100..=600_000;
        /// Requests that may wait for the authorizer to say who sent them; a further one is dropped unanswered, and its
        /// device sends it again.
        max_unauthenticated: usize = 1_024, 1..=1_000_000, reloaded;
        /// How many times the bytes of its request an answer may have while its sender has shown no access token:
        /// whoever forges a sender's address must not multiply traffic (RFC 7252 §11.3). Longer ones come in blocks.
        max_amplification: u16 = 3, 1..=100, reloaded;
        /// Whether a target's answer `{"response":…}` is taken as its inner value, for devices that wrap it so.
        coap_unwrap_response: bool = false, Anything, reloaded;
    }

    /// The service that knows devices, and says which call is allowed.
    [authorizer] Authorizer {
        /// Take calls of applications over NATS, too, on `<nats.prefix>.app.<tenant>.<application>.call.<device>`. Who
        /// may call as which is NATS' part: an account for each (`deploy/nats`). Routers must be of this version.
        answer_applications: bool = false, Anything;
        /// Threads of the process; 0: one for each core. One thread spends the least CPU on a call, and further
        /// processes share the work as well as further threads do.
        worker_threads: u16 = 1, 0..=1_024;
        /// Milliseconds that questions already received may take to be answered when the service stops.
        drain_ms: u64 = 5_000, 0..=600_000, reloaded;
        /// Of a call's remaining time, how many percent a tenant's external decision point may take; also at most what
        /// the tenant's set says.
        external_share_percent: u16 = 20, 1..=90;
        /// Calls that may wait for external decision points at once; a further one is denied. One tenant's have
        /// `shares.per_customer_percent` of that.
        max_external_questions: usize = 1_024, 1..=65_535, reloaded;
        /// Bytes of `getDevices` answers that an authorizer sends one customer a second; further lists wait their turn,
        /// up to 256 of them. 0: no limit.
        list_bytes_per_second_per_customer: u32 = 4_194_304, 0..=1_073_741_824, reloaded;
        /// Origins of external decision points over HTTP that tenants' sets may name, as http://opa:8181, several after
        /// commas; `*`: all. In plain text: TLS is the part of a proxy nearby. Empty: none, over NATS alone.
        external_origins: Option<String> = None, Origins;
    }

    /// Who did what: a record of every change of the registry, the tokens and the policies, and of every denial, in two
    /// JetStream streams. Their age and size hold from when they are made: by the first command or authorizer that
    /// writes.
    [audit] Audit {
        /// Seconds for which a record is kept.
        max_age_s: u64 = 7_776_000, 1..=3_153_600_000;
        /// Bytes that all records of changes may take, in each copy of their stream; then the oldest go. NATS reserves
        /// them. A record takes about 500.
        max_bytes: u64 = 268_435_456, 1_048_576..=1_099_511_627_776;
        /// The same of denials, in a stream of their own: whoever causes them pushes out no change. A record takes
        /// about 800.
        max_denied_bytes: u64 = 134_217_728, 1_048_576..=1_099_511_627_776;
        /// Denials of one tenant that one authorizer records a second; further ones are counted in the next record.
        /// 0: they are only counted, in a record every ten seconds.
        denials_per_second: u32 = 10, 0..=1_000, reloaded;
        /// Records that may wait in an authorizer to be written; a further one is counted in the tenant's next record.
        max_queued_records: usize = 1_024, 1..=1_000_000;
    }

    /// The service that finds a call's target, and brings the answer back.
    [router] Router {
        /// Threads of the process; 0: one for each core. One thread spends the least CPU on a call, and further
        /// processes share the work as well as further threads do.
        worker_threads: u16 = 1, 0..=1_024;
        /// Milliseconds that calls in flight may take to end when the service stops; the rest is cut off.
        drain_ms: u64 = 10_000, 0..=600_000, reloaded;
        /// Calls that may wait for their target at once; a further one ends as "Too many requests!".
        max_calls_in_flight: usize = 100_000, 1..=10_000_000, reloaded;
    }

    /// The API for applications: programs that call devices, over HTTP and with a key (`switchboard app`).
    [api] Api {
        /// Address to listen on, in plain text: TLS is the part of a proxy in front. Loopback unless told: 0.0.0.0:8081
        /// is every IPv4 address of the machine.
        listen: SocketAddr = loopback(8081), Anything;
        /// Proxies in front, whose word of who is behind them (`X-Forwarded-For`) is taken, for applications that are
        /// bound to networks.
        trusted_proxies: Networks = Networks::default(), Anything;
        /// Connections at once; a further one is closed.
        max_connections: usize = 10_000, 1..=1_000_000;
        /// Bytes of one request's body; a larger one is refused (413). Stay well below `max_payload` of NATS, 1 MiB
        /// unless set there.
        max_body_bytes: usize = 65_536, 1_024..=1_048_576;
        /// Milliseconds from the accepted connection, or the last answer, to the complete head of the next request;
        /// then the connection is closed.
        idle_timeout_ms: u64 = 60_000, 100..=3_600_000;
        /// Milliseconds a request's body may take to come (408), and a client not to read a byte of its answer; then
        /// the connection is closed.
        request_timeout_ms: u64 = 10_000, 100..=600_000;
        /// Calls that may be in flight at once; a further one is refused (429).
        max_calls_in_flight: usize = 10_000, 1..=1_000_000;
        /// Of those, one application's.
        max_calls_in_flight_per_app: usize = 1_000, 1..=1_000_000;
        /// Calls that one application may make a second on average (a token bucket); one above is refused (429). 0: no
        /// limit.
        calls_per_second_per_app: u32 = 1_000, 0..=1_000_000;
        /// Calls that one application may make at once after a pause: the depth of that bucket.
        call_burst_per_app: u32 = 2_000, 1..=1_000_000;
        /// Applications that may listen to events at once (`/v1/events`), each by a connection of its own; a further
        /// one is refused (429). One application may be half of them.
        max_listeners: usize = 1_000, 1..=1_000_000;
        /// Bytes that the records of calls under idempotency keys may take, in each copy of their bucket; then such a
        /// call is refused (503). NATS reserves them when the bucket is made. A record takes about 300, and the answer.
        idempotency_max_bytes: u64 = 268_435_456, 1_048_576..=1_099_511_627_776;
        /// Whether applications may keep the registry, as far as the role of their key goes: tenants, customers,
        /// devices, tokens, keys, policies. NATS must let this service write it: the user `admin` of `deploy/nats`.
        administration: bool = false, Anything;
        /// Milliseconds that calls in flight may take to end when the service stops; the rest is cut off.
        drain_ms: u64 = 10_000, 0..=600_000;
        /// Threads of the process; 0: one for each core.
        worker_threads: u16 = 1, 0..=1_024;
    }

    /// The service that NATS asks who a node is (`deploy/nats`). Only for where it does.
    [identity] Identity {
        /// What a node shows to join, as its `nats.password`; empty: this process is no identity service.
        join_secret: Option<Secret> = None, Anything;
        /// The key that answers are signed with, an account's seed ("SA…"): `switchboard-identity --new-issuer` makes
        /// one, and says what NATS is to be told of it. Who has it can be anybody to NATS.
        issuer_seed: Option<Secret> = None, Anything;
        /// Seconds after which a node's rights end, and it asks for them again: NATS closes its connection for that. Up
        /// to a quarter sooner, so that not all come at once.
        lifetime_s: u32 = 86_400, 10..=31_536_000;
    }

    /// For operators: /livez, /readyz and /metrics over HTTP, where no password is asked for, and changes of settings.
    [admin] Admin {
        /// Address to listen on. Several services on one machine need one each.
        listen: SocketAddr = loopback(9100), Anything;
        /// Milliseconds between two looks at whether the settings' file has changed; SIGHUP has it looked at at once.
        reload_check_ms: u64 = 10_000, 100..=86_400_000, reloaded;
    }

    /// What is written to standard error. RUST_LOG is not read. From `info` up one place in the code writes at most 30
    /// lines at once, then one a second; how many more there were is said every ten seconds.
    [log] Log {
        /// What is logged: a level, and other levels for named targets after commas, as in `info,async_nats=warn`.
        level: String = "info".to_owned(), LogFilter, reloaded;
        /// How a line is written: auto is pretty on a terminal and json otherwise. A line of JSON names its `service`,
        /// and as `module` the part of the code that says it: a target for `level`.
        format: LogFormat = LogFormat::Auto, Anything;
    }

    /// What became of calls, for `switchboard call show`: a record of each hop, in the memory of the process that took
    /// it.
    [journal] Journal {
        /// Hops that a process remembers; the newest take the place of the oldest. Each takes 96 bytes, no more than
        /// there have been. 0: none.
        max_hops: usize = 100_000, 0..=10_000_000;
    }

    /// OpenTelemetry traces: one span for each hop of a call, sent to a collector. The variables OTEL_… are not read.
    [traces] Traces {
        /// A collector's OTLP receiver over HTTP, to whose address /v1/traces is added. In plain text, so one nearby:
        /// TLS, credentials and the way to a vendor are the collector's part. Empty: nothing is traced, and
        /// `traceparent` goes from device to device as it is.
        endpoint: Option<String> = None, HttpEndpoint;
        /// Of a million calls that come without a `traceparent`, how many are traced. One that comes with it is traced
        /// if its sampled flag says so.
        calls_sampled_per_million: u32 = 10_000, 0..=1_000_000;
        /// Calls traced a second at the node where they come in, whoever asked for it; a further one goes on untraced,
        /// its flag taken away. 0: no limit.
        max_calls_per_second: u32 = 100, 0..=1_000_000;
        /// Spans that may wait to be sent; a further one is dropped and counted. Each takes about a kilobyte.
        max_queued_spans: usize = 8_192, 1..=1_000_000;
        /// Spans of one request to the collector; as soon as so many have come, it is sent.
        max_batch_spans: usize = 512, 1..=100_000;
        /// Milliseconds after which spans are sent though their batch is not full. Also the pause before a batch is
        /// sent again that the collector did not take, doubled each time up to half a minute.
        export_interval_ms: u64 = 1_000, 10..=600_000;
        /// Milliseconds that the collector may take over one request.
        export_timeout_ms: u64 = 10_000, 10..=600_000;
    }
}

impl Nats {
    /// The servers of `url`, one by one.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.url.split(',').map(str::trim)
    }
}

/// What no setting can say alone; asked only about settings that are valid by themselves.
fn check_together(settings: &Settings, checks: &mut Checks<'_>) {
    let Settings { nats, device_api, ingress, mqtt, http, tls, .. } = settings;
    checks.at_most(
        ("device_api.default_timeout_ms", u64::from(device_api.default_timeout_ms)),
        ("device_api.max_timeout_ms", u64::from(device_api.max_timeout_ms)),
    );
    checks.at_most(
        ("device_api.default_connect_timeout_ms", u64::from(device_api.default_connect_timeout_ms)),
        ("device_api.max_timeout_ms", u64::from(device_api.max_timeout_ms)),
    );
    checks.at_most(
        ("mqtt.max_packet_bytes_before_authentication", mqtt.max_packet_bytes_before_authentication),
        ("mqtt.max_packet_bytes", mqtt.max_packet_bytes),
    );
    checks.at_most(
        ("mqtt.max_packet_bytes", u64::from(mqtt.max_packet_bytes)),
        ("ingress.max_outbound_bytes", ingress.max_outbound_bytes as u64),
    );
    checks.at_most(
        ("http.poll_timeout_ms", http.poll_timeout_ms),
        ("http.max_poll_timeout_ms", http.max_poll_timeout_ms),
    );
    let (certificate, key) = ("tls.certificate_file", "tls.key_file");
    checks.holds(
        &[certificate, key],
        tls.certificate_file.is_none() || tls.key_file.is_some(),
        "needs tls.key_file beside it",
    );
    checks.holds(
        &[key, certificate],
        tls.key_file.is_none() || tls.certificate_file.is_some(),
        "needs tls.certificate_file beside it",
    );
    let (user, password, file) = ("nats.user", "nats.password", "nats.password_file");
    let has_password = nats.password.is_some() || nats.password_file.is_some();
    checks.holds(
        &["nats.store_user", password, file],
        nats.store_user.is_none() || has_password,
        "needs nats.password or nats.password_file beside it",
    );
    checks.holds(
        &[user, password, file],
        nats.user.is_none() || has_password,
        "needs nats.password or nats.password_file beside it",
    );
    checks.holds(
        &[password, user],
        nats.password.is_none() || nats.user.is_some(),
        "needs nats.user beside it",
    );
    checks.holds(
        &[file, user],
        nats.password_file.is_none() || nats.user.is_some(),
        "needs nats.user beside it",
    );
    checks.holds(
        &[file, password],
        nats.password_file.is_none() || nats.password.is_none(),
        "stands in for nats.password: set one or the other",
    );
    checks.holds(
        &["nats.credentials_file", user],
        nats.credentials_file.is_none() || nats.user.is_none(),
        "stands in for nats.user and nats.password: set one or the other",
    );
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests;
