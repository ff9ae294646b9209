//! What changes in a bucket? A watch that begins again by itself whenever it could have missed something: where it was,
//! if nothing that was removed vanishes from the bucket, or else with all that stands there.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{HeaderMap, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use crate::bucket::{Bucket, Made, is_marker};
use crate::connect::Connection;
use crate::errors::{AskError, StoreError};

/// How often the store says that it is still there when nothing changes.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long the store keeps a watch whose process is gone.
const INACTIVE_LIMIT: Duration = Duration::from_secs(15);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);
/// The longest that a store may be silent which has told all once it can.
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to say whether it has a watch, before it is asked again.
const RENEWAL_WAIT: Duration = Duration::from_secs(5);
/// So much earlier than about the bucket it is asked about a watch.
const HEAD_START: Duration = Duration::from_secs(1);
/// So often in a row a store may say that it has a watch, and tell nothing.
const MAX_SILENCES: u32 = 3;

/// How long the store may be silent, at first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Before a watch has begun.
    pub(crate) begin: Duration,
    /// After that: then the watch starts over.
    pub(crate) silence: Duration,
}

/// How long the store may be silent now: until it has told all, twice as long each time that it was waited for in vain.
/// Whoever loads decides nothing yet, and a store that is busy gets slower by each beginning.
#[derive(Debug)]
struct Waits {
    patience: Patience,
    in_vain: u32,
}

impl Waits {
    fn begin(&self) -> Duration {
        self.longer(self.patience.begin)
    }

    fn silence(&self) -> Duration {
        self.longer(self.patience.silence)
    }

    fn longer(&self, at_first: Duration) -> Duration {
        (at_first * 2u32.pow(self.in_vain.min(8))).min(LONGEST_PATIENCE)
    }

    fn was_in_vain(&mut self) {
        self.in_vain = self.in_vain.saturating_add(1);
    }

    fn is_over(&mut self) {
        self.in_vain = 0;
    }
}

impl Patience {
    /// Of who follows a bucket: what was missed is to be known soon.
    const FOLLOWING: Patience =
        Patience { begin: Duration::from_millis(1_500), silence: Duration::from_millis(3_500) };
    /// Of who loads it once.
    pub(crate) const LOADING: Patience =
        Patience { begin: Duration::from_secs(6), silence: Duration::from_secs(20) };
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WatchEvent {
    /// A load from the beginning: every key that stands there follows, then `Loaded`.
    Reset {
        /// The bucket is another than before: the store lost its memory.
        is_new_bucket: bool,
        /// The bucket's last revision; of an empty one, the last before its first.
        revision: u64,
    },
    /// All that stood there when the load began has been told.
    Loaded,
    /// A key has a value.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
        /// Its revision.
        revision: u64,
    },
    /// A key has none any more.
    Removed {
        /// The key.
        key: String,
        /// The removal's own revision.
        revision: u64,
    },
    /// Nothing has changed; the store is still there.
    Alive,
    /// Changes may be missed from now on, until the next `Loaded` or `Resumed`.
    Lost,
    /// Nothing was missed: what had changed since `Lost` has been told.
    Resumed,
}

/// One watch of a bucket.
pub(crate) struct Watch {
    bucket: Bucket,
    /// Patterns of the keys that the store delivers; none: all.
    keys: Vec<&'static str>,
    waits: Waits,
    connection: watch::Receiver<Connection>,
    feed: Option<Feed>,
    /// When the bucket watched last was made, in the store's words.
    bucket_made: Option<String>,
    /// Of which keys a writing can be found again after an outage; none, if removals vanish.
    lasts: Option<fn(&str) -> bool>,
    /// The last such writing that was told.
    anchor: Option<Anchor>,
    /// Whether all that stood there has been told once.
    has_loaded: bool,
    failures: u32,
    ready: VecDeque<WatchEvent>,
}

/// A writing that has been told, as everything before it: where it still stands in the store, nothing before it has
/// changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Anchor {
    revision: u64,
    /// When the store took it, in nanoseconds: a store that lost its last writings may give their numbers anew.
    written: u64,
}

struct Feed {
    subscriber: Subscriber,
    /// It begins with this writing, or cannot be trusted.
    begins_with: Option<Anchor>,
    /// The bucket's last revision when this began.
    revision: u64,
    /// How many messages the store has delivered: the next carries one more, or something was lost.
    delivered: u64,
    is_loaded: bool,
    epoch: u64,
    silent_from: Instant,
    /// The operation that made it, and what that says if it is there.
    renewal: (String, Value),
    /// The store has been silent for too long, and is asked whether it still has the watch.
    is_doubted: bool,
    /// How often in a row it had.
    silences: u32,
}

/// What is heard next of a feed.
enum Heard {
    Message(Option<Message>),
    /// Nothing, for too long.
    Nothing,
    /// Whether the store still has the watch.
    IsThere(bool),
}

/// What the store says with a heartbeat that neither stalls nor asks for anything.
#[derive(Debug, PartialEq, Eq)]
enum Heartbeat {
    /// There is nothing to deliver.
    Idle,
    /// There is: nats-server sends one too when it was let flow again a moment ago and has not gone on yet.
    Early,
    /// It has delivered something that did not come.
    Missed,
}

impl Heartbeat {
    fn of(headers: &HeaderMap, feed: &Feed) -> Self {
        let told = |name| number(headers, name);
        Self::said(told("Nats-Last-Consumer"), told("Nats-Last-Stream"), feed.delivered, feed.revision)
    }

    /// With how many messages the store has delivered, and how far it has come in the bucket: once it has nothing to
    /// deliver, to the bucket's end, whatever the last key was.
    fn said(delivered: Option<u64>, come_to: Option<u64>, taken: u64, revision: u64) -> Self {
        match (delivered, come_to) {
            (Some(delivered), _) if delivered != taken => Self::Missed,
            (_, Some(come_to)) if come_to < revision => Self::Early,
            _ => Self::Idle,
        }
    }
}

/// A feed that has just begun.
struct Begun {
    feed: Feed,
    bucket_made: String,
    revision: u64,
}

impl Watch {
    /// Of all keys that one of `keys` matches, as in `["device.*"]`: one pattern, or several that match few keys. For
    /// each message that is to match one of several, nats-server 2.15 goes through all keys of a block that do.
    pub(crate) fn new(bucket: &Bucket, keys: &[&'static str]) -> Self {
        Watch {
            bucket: bucket.clone(),
            keys: keys.to_vec(),
            waits: Waits { patience: Patience::FOLLOWING, in_vain: 0 },
            connection: bucket.bus().connection(),
            feed: None,
            bucket_made: None,
            lasts: None,
            anchor: None,
            has_loaded: false,
            failures: 0,
            ready: VecDeque::new(),
        }
    }

    /// Of all keys: cheaper for the store than several patterns that match most of a large bucket's.
    pub(crate) fn of_all(bucket: &Bucket) -> Self {
        Watch::new(bucket, &[])
    }

    /// Goes on after an outage where it was, in a bucket whose removals leave markers for good. `lasts` says which keys
    /// are not written all the time. A store that has fallen silent is asked whether it still has the watch: then
    /// nothing is lost, and `Lost` is not said, though what is told may be half a minute old. Whoever minds that sends
    /// beats.
    pub(crate) fn resuming(self, lasts: fn(&str) -> bool) -> Self {
        Watch { lasts: Some(lasts), ..self }
    }

    /// For who has another patience.
    pub(crate) fn with(self, patience: Patience) -> Self {
        Watch { waits: Waits { patience, in_vain: 0 }, ..self }
    }

    /// The next event; none when the bus has been closed. Not to be dropped half-way: a load would begin anew.
    pub(crate) async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.bucket.bus().is_closed() {
                return None;
            }
            match self.feed.take() {
                None => self.start().await?,
                Some(feed) => {
                    self.follow(feed).await?;
                    if self.feed.is_none() {
                        self.ready.push_back(WatchEvent::Lost);
                    }
                }
            }
        }
    }

    async fn start(&mut self) -> Option<()> {
        let is_up = |connection: &Connection| matches!(connection, Connection::Up { .. });
        let Connection::Up { epoch } = *self.connection.wait_for(is_up).await.ok()? else { return Some(()) };
        // Between two leaders a question gets lost; over a large bucket it takes its time.
        let wait = self.waits.begin();
        let mut is_there = false;
        let begun = tokio::select! {
            biased;
            // What was asked over a connection that is gone is not answered any more.
            changed = self.connection.wait_for(|now| *now != (Connection::Up { epoch })) => {
                changed.ok()?;
                return Some(());
            }
            begun = begin(&self.bucket, &self.keys, self.anchor, epoch, wait, &mut is_there) => begun,
        };
        match begun {
            Ok(Begun { feed, bucket_made, revision }) => {
                self.failures = 0;
                let is_new_bucket = self.bucket_made.as_ref().is_some_and(|before| *before != bucket_made);
                self.bucket_made = Some(bucket_made);
                if feed.begins_with.is_some() && is_new_bucket {
                    self.anchor = None;
                    return Some(());
                }
                if feed.begins_with.is_none() {
                    (self.anchor, self.has_loaded) = (None, false);
                    self.ready.push_back(WatchEvent::Reset { is_new_bucket, revision });
                    if feed.is_loaded {
                        self.loaded();
                    }
                }
                self.feed = Some(feed);
            }
            Err(error) => {
                match is_there {
                    true => self.waits.was_in_vain(),
                    false => self.waits.is_over(),
                }
                let bucket = self.bucket.name();
                match self.failures {
                    0 => warn!(bucket, %error, "cannot watch the bucket; it is tried again"),
                    _ => debug!(bucket, %error, "cannot watch the bucket"),
                }
                self.failures = self.failures.saturating_add(1);
                let delay = Duration::from_millis(50) * 2u32.pow(self.failures.min(5));
                sleep(delay.min(MAX_RETRY_DELAY)).await;
            }
        }
        Some(())
    }

    /// Waits for one message and takes it in; a feed that can no longer be trusted is not put back.
    async fn follow(&mut self, mut feed: Feed) -> Option<()> {
        let silence_ends = feed.silent_from + self.waits.silence();
        let silence = async {
            match feed.is_doubted {
                false => {
                    sleep_until(silence_ends).await;
                    Heard::Nothing
                }
                true => Heard::IsThere(is_there(&self.bucket, &feed.renewal, feed.silent_from).await),
            }
        };
        let heard = tokio::select! {
            biased;
            message = feed.subscriber.next() => Heard::Message(message),
            changed = self.connection.changed() => {
                changed.ok()?;
                let now = *self.connection.borrow_and_update();
                // A message may have been lost with the old connection.
                if now != (Connection::Up { epoch: feed.epoch }) {
                    debug!(bucket = self.bucket.name(), "the connection has changed: the watch starts over");
                    return Some(());
                }
                self.feed = Some(feed);
                return Some(());
            }
            heard = silence => heard,
        };
        match heard {
            Heard::Message(Some(message)) => self.take(feed, message).await,
            Heard::Message(None) => {}
            Heard::Nothing if self.lasts.is_some() && feed.silences < MAX_SILENCES => {
                warn!(
                    bucket = self.bucket.name(),
                    "the store has fallen silent: it is asked whether it has the watch"
                );
                feed.is_doubted = true;
                feed.silences += 1;
                self.feed = Some(feed);
            }
            Heard::IsThere(true) => {
                feed.is_doubted = false;
                feed.silent_from = Instant::now();
                self.feed = Some(feed);
            }
            Heard::Nothing | Heard::IsThere(false) => {
                warn!(bucket = self.bucket.name(), "the store has fallen silent: the watch starts over");
                if !feed.is_loaded {
                    self.waits.was_in_vain();
                }
            }
        }
        Some(())
    }

    /// Takes a message in, and puts the feed back if it can still be trusted.
    async fn take(&mut self, mut feed: Feed, message: Message) {
        (feed.is_doubted, feed.silences) = (false, 0);
        feed.silent_from = Instant::now();
        match message.status {
            None => {
                let Some(place) = message.reply.as_deref().and_then(Place::parse) else {
                    return;
                };
                if place.delivery != feed.delivered + 1 {
                    warn!(bucket = self.bucket.name(), "changes were lost: the watch starts over");
                    return;
                }
                feed.delivered = place.delivery;
                let here = Anchor { revision: place.revision, written: place.written };
                if feed.begins_with.is_some_and(|anchor| anchor != here) {
                    self.cannot_resume();
                    return;
                }
                if feed.begins_with.take().is_none()
                    && let Some(event) = self.event_of(message, here)
                {
                    self.ready.push_back(event);
                }
                if !feed.is_loaded && place.pending == 0 {
                    feed.is_loaded = true;
                    self.loaded();
                }
            }
            Some(StatusCode::IDLE_HEARTBEAT) => {
                let headers = message.headers.unwrap_or_default();
                if let Some(stalled) = headers.get("Nats-Consumer-Stalled") {
                    self.let_flow(Subject::from(stalled.as_str())).await;
                } else if let Some(flow_control) = message.reply {
                    self.let_flow(flow_control).await;
                } else {
                    match Heartbeat::of(&headers, &feed) {
                        Heartbeat::Idle => {}
                        Heartbeat::Early => {
                            self.feed = Some(feed);
                            return;
                        }
                        Heartbeat::Missed => {
                            warn!(bucket = self.bucket.name(), "changes were lost: the watch starts over");
                            return;
                        }
                    }
                    // What was counted as pending may have been removed before it was delivered.
                    if feed.begins_with.is_some() {
                        self.cannot_resume();
                        return;
                    }
                    if !feed.is_loaded {
                        feed.is_loaded = true;
                        self.loaded();
                    }
                    self.ready.push_back(WatchEvent::Alive);
                }
            }
            Some(status) => {
                debug!(bucket = self.bucket.name(), %status, "the store has ended the watch: it starts over");
                return;
            }
        }
        self.feed = Some(feed);
    }

    /// All that is there has been told.
    fn loaded(&mut self) {
        self.waits.is_over();
        let event = if self.has_loaded { WatchEvent::Resumed } else { WatchEvent::Loaded };
        self.has_loaded = true;
        self.ready.push_back(event);
    }

    /// What was told last does not stand there any more, or never has: what else is missing nobody knows.
    fn cannot_resume(&mut self) {
        debug!(bucket = self.bucket.name(), "what was told last is gone: the watch starts over");
        self.anchor = None;
    }

    fn event_of(&mut self, message: Message, here: Anchor) -> Option<WatchEvent> {
        let key = message.subject.strip_prefix(self.bucket.subject_prefix())?.to_owned();
        let Anchor { revision, .. } = here;
        if self.lasts.is_some_and(|lasts| lasts(&key)) {
            self.anchor = Some(here);
        }
        Some(match message.headers.as_ref().is_some_and(is_marker) {
            true => WatchEvent::Removed { key, revision },
            false => WatchEvent::Put { key, value: message.payload, revision },
        })
    }

    /// Tells the store that all before this was taken in.
    async fn let_flow(&self, subject: Subject) {
        if let Err(error) = self.bucket.bus().tell(subject, Bytes::new()).await {
            debug!(%error, "the store was not told to go on");
        }
    }
}

/// Begins to watch `keys`, at `anchor` if there is one. Says in `is_there` when it has found the bucket.
async fn begin(
    bucket: &Bucket,
    keys: &[&str],
    anchor: Option<Anchor>,
    epoch: u64,
    wait: Duration,
    is_there: &mut bool,
) -> Result<Begun, StoreError> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let bus = bucket.bus();
    let Made { at: bucket_made, revision } = bucket.make_if_missing().await?;
    *is_there = true;
    let consumer = format!("w{}_{}", bus.process(), SERIAL.fetch_add(1, Ordering::Relaxed));
    let feed = match bucket.is_read_only() {
        true => bus.subjects().read(bus.process()),
        false => bus.subjects().feed(bus.process()),
    };
    let deliver_to = format!("{feed}.{consumer}");
    let subscriber = bus.client().subscribe(deliver_to.clone()).await;
    let subscriber = subscriber.map_err(|error| StoreError::Unreadable(error.to_string()))?;
    let filters: Vec<String> = keys.iter().map(|key| format!("{}{key}", bucket.subject_prefix())).collect();
    let stream = bucket.stream();
    let mut operation = format!("CONSUMER.CREATE.{stream}.{consumer}");
    let (filter, filtered) = match filters.as_slice() {
        [] => ("filter_subject", Value::Null),
        // Said in the subject, too, so that NATS can keep a reader to it.
        [one] if bucket.is_read_only() => {
            operation = format!("{operation}.{one}");
            ("filter_subject", json!(one))
        }
        several => ("filter_subjects", json!(several)),
    };
    let mut request = json!({
        "stream_name": stream,
        "config": {
            "name": consumer,
            "description": format!("switchboard watch of {}", bucket.name()),
            "deliver_subject": deliver_to,
            // A bucket keeps one writing of each key; where none is chosen, NATS takes no other word for it.
            "deliver_policy": if keys.is_empty() { "all" } else { "last_per_subject" },
            "ack_policy": "none",
            "replay_policy": "instant",
            (filter): filtered,
            "flow_control": true,
            "idle_heartbeat": nanoseconds(HEARTBEAT),
            "inactive_threshold": nanoseconds(INACTIVE_LIMIT),
            "num_replicas": 1,
            "mem_storage": true,
        },
    });
    if let (Some(Anchor { revision, .. }), Some(config)) = (anchor, request.pointer_mut("/config")) {
        config["deliver_policy"] = json!("by_start_sequence");
        config["opt_start_seq"] = json!(revision);
    }
    let created = bucket.administer(&operation, &request, wait).await?;
    if anchor.is_none() {
        bus.meters().watch_reloads.increment(1);
    }
    let awaits = created.get("num_pending").and_then(Value::as_u64).unwrap_or_default();
    // What arrived meanwhile may have been delivered already, so "none pending" is said of the store alone; with
    // anything delivered, the last message or a heartbeat says it.
    let delivered = created.pointer("/delivered/consumer_seq").and_then(Value::as_u64).unwrap_or_default();
    let is_loaded = awaits == 0 && delivered == 0 && anchor.is_none();
    let silent_from = Instant::now();
    if let Some(request) = request.as_object_mut() {
        request.insert("action".to_owned(), json!("update"));
    }
    let renewal = (operation, request);
    let (is_doubted, silences) = (false, 0);
    let begins_with = anchor;
    let feed = Feed {
        subscriber,
        begins_with,
        revision,
        delivered: 0,
        is_loaded,
        epoch,
        silent_from,
        renewal,
        is_doubted,
        silences,
    };
    Ok(Begun { feed, bucket_made, revision })
}

/// Whether the store still has a watch of which nothing was heard since `silent_from`. It is not made anew before: each
/// beginning makes a busy store busier. But a watch lives on one server of a cluster, and of one that died nobody says
/// anything: it is gone when the store answers what it was asked later, and not about the watch.
async fn is_there(bucket: &Bucket, (operation, request): &(String, Value), silent_from: Instant) -> bool {
    let expired = Err(StoreError::Unreachable(AskError::Expired));
    let asked = async {
        loop {
            let answer = bucket.administer(operation, request, RENEWAL_WAIT).await.map(|_| ());
            if answer != expired {
                return answer.is_ok();
            }
        }
    };
    let overtaken = async {
        sleep(HEAD_START).await;
        while bucket.info().await.map(|_| ()) == expired {}
    };
    tokio::select! {
        biased;
        is_there = asked => is_there,
        () = overtaken => false,
        () = sleep_until(silent_from + LONGEST_PATIENCE) => false,
    }
}

/// What a delivery's reply subject says of it:
/// `$JS.ACK.<stream>.<consumer>.<times>.<revision>.<delivery>.<time>.<pending>`,
/// with a domain and an account in front of the stream from some servers.
struct Place {
    revision: u64,
    delivery: u64,
    written: u64,
    pending: u64,
}

impl Place {
    fn parse(reply: &str) -> Option<Self> {
        let mut tokens = reply.strip_prefix("$JS.ACK.")?.split('.');
        let skipped = if reply.split('.').count() == 9 { 3 } else { 5 };
        let revision = tokens.nth(skipped)?.parse().ok()?;
        let delivery = tokens.next()?.parse().ok()?;
        let written = tokens.next()?.parse().ok()?;
        let pending = tokens.next()?.parse().ok()?;
        Some(Place { revision, delivery, written, pending })
    }
}

fn number(headers: &HeaderMap, name: &'static str) -> Option<u64> {
    headers.get(name)?.as_str().parse().ok()
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_given_twice_the_time_until_it_has_told_all() {
        let mut waits = Waits { patience: Patience::FOLLOWING, in_vain: 0 };
        let milliseconds = |waits: &Waits| (waits.begin().as_millis(), waits.silence().as_millis());
        for told in [(1_500, 3_500), (3_000, 7_000), (6_000, 14_000), (12_000, 28_000), (24_000, 30_000)] {
            assert_eq!(milliseconds(&waits), told);
            waits.was_in_vain();
        }
        (0..100).for_each(|_| waits.was_in_vain());
        assert_eq!(milliseconds(&waits), (30_000, 30_000));
        waits.is_over();
        assert_eq!(milliseconds(&waits), (1_500, 3_500));
    }

    #[test]
    fn a_heartbeat_ends_a_load_only_at_the_end_of_the_bucket() {
        for (delivered, come_to, heard) in [
            (Some(7), Some(100), Heartbeat::Idle),
            (Some(7), Some(101), Heartbeat::Idle),
            (Some(7), Some(99), Heartbeat::Early),
            (Some(0), Some(0), Heartbeat::Missed),
            (Some(8), Some(100), Heartbeat::Missed),
            (None, None, Heartbeat::Idle),
        ] {
            assert_eq!(Heartbeat::said(delivered, come_to, 7, 100), heard, "{delivered:?} {come_to:?}");
        }
    }

    #[test]
    fn both_forms_of_a_delivery_are_read() {
        for reply in [
            "$JS.ACK.KV_swb_claims.w1_0.1.1700000000000005.3.1700000000000000000.7",
            "$JS.ACK.hub.ACCHASH.KV_swb_claims.w1_0.1.1700000000000005.3.1700000000000000000.7",
            "$JS.ACK.hub.ACCHASH.KV_swb_claims.w1_0.1.1700000000000005.3.1700000000000000000.7.random",
        ] {
            let place = Place::parse(reply).unwrap();
            assert_eq!((place.revision, place.delivery, place.pending), (1_700_000_000_000_005, 3, 7));
            assert_eq!(place.written, 1_700_000_000_000_000_000);
        }
        assert!(Place::parse("swb.reply.1.2").is_none());
        assert!(Place::parse("$JS.ACK.short").is_none());
    }
}
