//! What is known of a call that is over? A record of each hop, kept by the process that took it, and what is missing.

use std::time::Duration;

use minicbor::{Decode, Encode};

use crate::{Budget, CallId, DeviceId, Limit, NodeId, Outcome, OutcomeName, Party, Protocol, closed_list};

closed_list! {
    /// Where a call comes by, in order.
    #[derive(PartialOrd, Ord, Encode, Decode)]
    #[cbor(index_only)]
    pub enum Station {
        /// The caller's node.
        #[n(0)]
        Caller = "caller",
        /// The API, for an application.
        #[n(1)]
        Api = "api",
        /// An authorizer.
        #[n(2)]
        Authorizer = "authorizer",
        /// A router.
        #[n(3)]
        Router = "router",
        /// The target's node.
        #[n(4)]
        Target = "target",
    }
}

impl Station {
    /// Whether calls come in there: it says how they ended, to whoever called.
    pub const fn is_first(self) -> bool {
        matches!(self, Station::Caller | Station::Api)
    }
}

closed_list! {
    /// How a hop ended: as the call did, or it went on.
    #[derive(Encode, Decode)]
    #[cbor(index_only)]
    pub enum HopEnd {
        /// [`Outcome::Answered`]
        #[n(0)]
        Answered = "answered",
        /// [`Outcome::Delivered`]
        #[n(1)]
        Delivered = "delivered",
        /// [`Outcome::Denied`]
        #[n(2)]
        Denied = "denied",
        /// [`Outcome::UnknownDevice`]
        #[n(3)]
        UnknownDevice = "unknown_device",
        /// [`Outcome::Offline`]
        #[n(4)]
        Offline = "offline",
        /// [`Outcome::TimedOut`]
        #[n(5)]
        TimedOut = "timed_out",
        /// [`Outcome::Lost`]
        #[n(6)]
        Lost = "lost",
        /// [`Outcome::Busy`]
        #[n(7)]
        Busy = "busy",
        /// [`Outcome::TooLargeForTarget`]
        #[n(8)]
        TooLargeForTarget = "too_large_for_target",
        /// [`Outcome::AnswerTooLarge`]
        #[n(9)]
        AnswerTooLarge = "answer_too_large",
        /// [`Outcome::AnswerInvalid`]
        #[n(10)]
        AnswerInvalid = "answer_invalid",
        /// [`Outcome::Malformed`]
        #[n(11)]
        Malformed = "malformed",
        /// [`Outcome::Unavailable`]
        #[n(12)]
        Unavailable = "unavailable",
        /// An authorizer sent it on.
        #[n(13)]
        Allowed = "allowed",
        /// Its time was over when it came.
        #[n(14)]
        Expired = "expired",
        /// Nobody waited for it any more.
        #[n(15)]
        GivenUp = "given_up",
        /// Its process ended before it did.
        #[n(16)]
        CutOff = "cut_off",
        /// A router that stopped handed it to another.
        #[n(17)]
        HandedOver = "handed_over",
        /// The target's session was not there any more.
        #[n(18)]
        NotHere = "not_here",
        /// It had waited, and was to be judged again.
        #[n(19)]
        Outdated = "outdated",
    }
}

impl HopEnd {
    /// That of the same name as an outcome.
    pub const fn of(outcome: OutcomeName) -> Self {
        match outcome {
            OutcomeName::Answered => HopEnd::Answered,
            OutcomeName::Delivered => HopEnd::Delivered,
            OutcomeName::Denied => HopEnd::Denied,
            OutcomeName::UnknownDevice => HopEnd::UnknownDevice,
            OutcomeName::Offline => HopEnd::Offline,
            OutcomeName::TimedOut => HopEnd::TimedOut,
            OutcomeName::Lost => HopEnd::Lost,
            OutcomeName::Busy => HopEnd::Busy,
            OutcomeName::TooLargeForTarget => HopEnd::TooLargeForTarget,
            OutcomeName::AnswerTooLarge => HopEnd::AnswerTooLarge,
            OutcomeName::AnswerInvalid => HopEnd::AnswerInvalid,
            OutcomeName::Malformed => HopEnd::Malformed,
            OutcomeName::Unavailable => HopEnd::Unavailable,
        }
    }

    /// The one of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.as_str() == name)
    }

    /// Whether the call went on from there, or ended well.
    pub const fn is_fine(self) -> bool {
        matches!(self, HopEnd::Answered | HopEnd::Delivered | HopEnd::Allowed | HopEnd::HandedOver)
    }
}

/// A call that a hop takes: what its record says from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HopOf {
    /// Where it is.
    pub station: Station,
    /// Which call.
    pub call: CallId,
    /// Who calls; in place of a device's, an application's id.
    pub from: DeviceId,
    /// Who is called; none where it was named and nobody has looked it up yet.
    pub to: Option<DeviceId>,
    /// In whose share it is, where that is known.
    pub party: Option<Party>,
    /// What was left of its time when the hop began.
    pub budget_ms: Budget,
    /// What its caller speaks, and at the target's node the target.
    pub protocol: Option<Protocol>,
}

/// One hop of one call. No body, no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct HopRecord {
    /// As in [`HopOf`].
    #[n(0)]
    pub call: CallId,
    /// As in [`HopOf`].
    #[n(1)]
    pub station: Station,
    /// As in [`HopOf`].
    #[n(2)]
    pub from: DeviceId,
    /// As in [`HopOf`]; zeros: none.
    #[n(3)]
    pub to: DeviceId,
    /// The node that a router handed it to.
    #[n(4)]
    pub node: Option<NodeId>,
    /// Microseconds since 1970 on the process' clock, when the hop began.
    #[n(5)]
    pub began_us: u64,
    /// Microseconds that it took; most that fit.
    #[n(6)]
    pub took_us: u32,
    /// As in [`HopOf`].
    #[n(7)]
    pub budget_ms: Budget,
    /// As in [`HopOf`].
    #[n(8)]
    pub party: Option<Party>,
    /// By which version of a tenant's policies it was decided; 0: by the built-in rule, or not there.
    #[n(9)]
    pub policy_version: u32,
    /// How it ended.
    #[n(10)]
    pub end: HopEnd,
    /// The limit that was reached, with [`HopEnd::Busy`].
    #[n(11)]
    pub limit: Option<Limit>,
    /// As in [`HopOf`].
    #[n(12)]
    pub protocol: Option<Protocol>,
}

const _: () = assert!(size_of::<HopRecord>() <= 96, "100,000 of them are to be about 10 MB");

impl HopRecord {
    /// Of a hop that has just begun, `began_us` after 1970; ended so, unless it is told another way.
    pub fn new(of: HopOf, began_us: u64, end: HopEnd) -> Self {
        let HopOf { station, call, from, to, party, budget_ms, protocol } = of;
        let to = to.unwrap_or(DeviceId(uuid::Uuid::nil()));
        let (node, limit) = (None, None);
        let (took_us, policy_version) = (0, 0);
        HopRecord {
            call,
            station,
            from,
            to,
            node,
            began_us,
            took_us,
            budget_ms,
            party,
            policy_version,
            end,
            limit,
            protocol,
        }
    }

    /// The call ended so, as far as the hop knows.
    pub fn ended(&mut self, outcome: &Outcome) {
        self.end = HopEnd::of(outcome.name());
        self.limit = match outcome {
            Outcome::Busy(limit) => Some(*limit),
            _ => None,
        };
    }

    /// When it ended, in microseconds since 1970.
    pub fn ended_us(&self) -> u64 {
        self.began_us.saturating_add(self.took_us.into())
    }

    /// How it ended, in a word or two.
    pub fn words(&self) -> String {
        match self.limit {
            Some(limit) => format!("{} ({})", self.end.as_str(), limit.as_str()),
            None => self.end.as_str().to_owned(),
        }
    }
}

/// Which hops are meant: those that match everything that is set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct HopFilter {
    /// Of this call.
    #[n(0)]
    pub call: Option<CallId>,
    /// Of calls of this device or application.
    #[n(1)]
    pub from: Option<DeviceId>,
    /// Of calls of this device.
    #[n(2)]
    pub to: Option<DeviceId>,
    /// Of this customer's calls.
    #[n(3)]
    pub party: Option<Party>,
    /// That ended so.
    #[n(4)]
    pub end: Option<HopEnd>,
    /// That ended at this time or later, in microseconds since 1970.
    #[n(5)]
    pub since_us: Option<u64>,
    /// Where calls come in, alone.
    #[n(6)]
    pub first_only: bool,
    /// Besides, where it is found out whom an application has called by name. Of those alone that are heard live.
    #[n(7)]
    #[cbor(default)]
    pub targets: bool,
}

/// What a hop says that its station alone does not. Not recorded: who listens live is told such hops, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Says {
    /// Nothing.
    #[default]
    Nothing,
    /// How the call ended, to an application that made it over NATS.
    End,
    /// Whom an application has called by name.
    Target,
}

impl HopFilter {
    /// Whether a hop is meant.
    pub fn takes(&self, hop: &HopRecord) -> bool {
        self.hears(hop, Says::Nothing)
    }

    /// The same of one that ends now.
    pub fn hears(&self, hop: &HopRecord, says: Says) -> bool {
        let is_meant = match says {
            Says::Nothing => false,
            Says::End => !matches!(hop.end, HopEnd::Allowed | HopEnd::HandedOver),
            Says::Target => self.targets,
        };
        self.call.is_none_or(|it| it == hop.call)
            && self.from.is_none_or(|it| it == hop.from)
            && self.to.is_none_or(|it| it == hop.to)
            && self.party.is_none_or(|it| Some(it) == hop.party)
            && self.end.is_none_or(|it| it == hop.end)
            && self.since_us.is_none_or(|it| it <= hop.ended_us())
            && (!self.first_only || is_meant || hop.station.is_first())
    }
}

/// What processes are asked (`swb.inspect.<service>`): each answers with a [`Report`], and to a tap as to that.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Inspect {
    /// How are you?
    #[n(0)]
    Status,
    /// The newest hops that match, so many at most.
    #[n(1)]
    Hops(#[n(0)] HopFilter, #[n(1)] u32),
    /// Tell of hops as they end, as with [`Instruct::Tap`], but of no body.
    #[n(2)]
    Tap(#[n(0)] Tap),
}

/// The most hops that one process tells at a time: they fit a message.
pub const MAX_TOLD_HOPS: u32 = 2_000;

/// What a process says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Report {
    /// Which service it is.
    #[n(0)]
    pub service: String,
    /// Which process: of a node, its id.
    #[n(1)]
    pub process: NodeId,
    /// The hops that were asked for, the newest first.
    #[n(2)]
    pub hops: Vec<HopRecord>,
    /// How it is, where that was asked.
    #[n(3)]
    pub status: Option<Status>,
}

/// How a process is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Status {
    /// Its version.
    #[n(0)]
    pub version: String,
    /// When it began, in milliseconds since 1970 on its clock.
    #[n(1)]
    pub started_ms: u64,
    /// Its clock, when it answered.
    #[n(2)]
    pub now_ms: u64,
    /// Its machine.
    #[n(3)]
    pub host: String,
    /// Why it is not ready, each part and its reason; empty: it is.
    #[n(4)]
    pub unready: Vec<(String, String)>,
    /// What is logged.
    #[n(5)]
    pub log_level: String,
    /// Hops in its journal, and how many it holds at most.
    #[n(6)]
    pub journal: (u64, u64),
    /// Of those, how many ended within the last ten seconds.
    #[n(7)]
    pub hops_in_10_s: u64,
    /// What else its service counts: claims, sessions.
    #[n(8)]
    pub numbers: Vec<(String, u64)>,
    /// Files that it may open; none: as many as it likes.
    #[n(9)]
    pub max_files: Option<u64>,
    /// Bytes that NATS takes in a message.
    #[n(10)]
    pub max_payload_bytes: u64,
    /// Its settings, each with its value in TOML, without those that name its own places and secrets.
    #[n(11)]
    pub settings: Vec<(String, String)>,
    /// The settings that name files of certificates, each with the end of the first that ends, in seconds from 1970.
    #[n(12)]
    pub certificates: Option<Vec<(String, i64)>>,
}

/// What processes are told (`swb.instruct.<service>`).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Instruct {
    /// Log this for so many seconds, then again what the settings say; 0: that at once. Answered with [`Instructed`].
    #[n(0)]
    Log(#[n(0)] String, #[n(1)] u32),
    /// Tell of hops as they end, for [`TAP_LEASE`] unless it is said again. Answered with [`Tapped`], again and again.
    #[n(1)]
    Tap(#[n(0)] Tap),
}

/// For how long a process tells of hops to somebody who says no more.
pub const TAP_LEASE: Duration = Duration::from_secs(10);

/// Which hops somebody wants to hear of.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Tap {
    /// Whose: the same each time that it is said.
    #[n(0)]
    pub id: u64,
    /// Which.
    #[n(1)]
    pub filter: HopFilter,
    /// Bytes of each call's body, and of its answer, that are told with the hop where it came in.
    #[n(2)]
    pub body_bytes: u32,
}

/// What became of an instruction.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Instructed {
    /// Which service it is.
    #[n(0)]
    pub service: String,
    /// Which process.
    #[n(1)]
    pub process: NodeId,
    /// Why it was not followed.
    #[n(2)]
    pub fault: Option<String>,
}

/// Hops that have ended.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Tapped {
    /// Which service they are of.
    #[n(0)]
    pub service: String,
    /// Which process.
    #[n(1)]
    pub process: NodeId,
    /// In the order in which they ended.
    #[n(2)]
    pub hops: Vec<TappedHop>,
    /// Those that were left out before them, since there were too many.
    #[n(3)]
    pub left_out: u64,
}

/// A hop, and how the bodies begin if they were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TappedHop {
    /// The hop.
    #[n(0)]
    pub hop: HopRecord,
    /// What the target was sent.
    #[n(1)]
    pub request: Option<String>,
    /// What it answered.
    #[n(2)]
    pub answer: Option<String>,
}

/// What an account of a call lacks, in words; none where it is whole. `there` are the processes that answered.
///
/// A hop is recorded when it ends: of a call that is under way, those still missing are said to be so.
pub fn missing(call: CallId, hops: &[HopRecord], there: &[NodeId]) -> Option<String> {
    let at = |station: Station| hops.iter().find(|it| it.station == station);
    let gone = |process: NodeId| match there.contains(&process) {
        true => "has no record of it: it is still under way there, or its journal is off or was too short",
        false => "does not answer: it has ended or cannot be reached, and its journal went with it",
    };
    if let Some(routed) = at(Station::Router) {
        let node = routed.node?;
        let is_told = at(Station::Target).is_some();
        return (!is_told).then(|| format!("a router handed it to node {node}, which {}", gone(node)));
    }
    let first = hops.iter().find(|it| it.station.is_first());
    match (first, at(Station::Authorizer)) {
        (None, None) => Some(format!("process {}, where the call came in, {}", call.node, gone(call.node))),
        (_, Some(decided)) if decided.end == HopEnd::Allowed => Some(
            "an authorizer sent it on to the routers, and none that answers has a record of it: it waits there still, \
             or there was none, or its router has ended"
                .to_owned(),
        ),
        (Some(_), None) => Some(
            "no authorizer that answers has a record of it: none was there, or the one that took it has ended"
                .to_owned(),
        ),
        (_, Some(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn hop(station: Station, end: HopEnd) -> HopRecord {
        let of = HopOf {
            station,
            call: CallId { node: NodeId(1), serial: 7 },
            from: DeviceId(Uuid::from_u128(1)),
            to: Some(DeviceId(Uuid::from_u128(2))),
            party: None,
            budget_ms: Budget::from_ms(1_000),
            protocol: Some(Protocol::Mqtt),
        };
        HopRecord { took_us: 500, ..HopRecord::new(of, 1_000_000, end) }
    }

    #[test]
    fn each_outcome_has_an_end_of_its_name() {
        for name in OutcomeName::ALL {
            assert_eq!(HopEnd::of(name).as_str(), name.as_str());
            assert_eq!(HopEnd::parse(name.as_str()), Some(HopEnd::of(name)));
        }
        assert_eq!(HopEnd::parse("fine"), None);
    }

    #[test]
    fn a_record_survives_the_wire() {
        let mut record = hop(Station::Router, HopEnd::Busy);
        record.ended(&Outcome::Busy(Limit::CustomerCalls));
        record.node = Some(NodeId(9));
        assert_eq!(record.words(), "busy (customer_calls)");
        let message = minicbor::to_vec(record).unwrap();
        assert_eq!(minicbor::decode::<HopRecord>(&message).unwrap(), record);
        assert!(message.len() < 120, "{}: so many fit a message of a megabyte", message.len());
    }

    #[test]
    fn a_filter_takes_what_matches_in_everything() {
        let offline = hop(Station::Caller, HopEnd::Offline);
        let with = |change: fn(&mut HopFilter)| {
            let mut filter = HopFilter::default();
            change(&mut filter);
            filter.takes(&offline)
        };
        assert!(HopFilter::default().takes(&offline));
        assert!(with(|it| it.end = Some(HopEnd::Offline)) && !with(|it| it.end = Some(HopEnd::Denied)));
        assert!(with(|it| it.since_us = Some(1_000_500)) && !with(|it| it.since_us = Some(1_000_501)));
        assert!(with(|it| it.from = Some(DeviceId(Uuid::from_u128(1)))));
        assert!(!with(|it| it.to = Some(DeviceId(Uuid::from_u128(1)))));
        assert!(with(|it| it.first_only = true));
        let (first, all) = (HopFilter { first_only: true, ..HopFilter::default() }, HopFilter::default());
        let (allowed, routed) =
            (hop(Station::Authorizer, HopEnd::Allowed), hop(Station::Router, HopEnd::Lost));
        assert!(all.takes(&routed) && !first.takes(&routed) && first.hears(&routed, Says::End));
        assert!(!first.hears(&allowed, Says::End), "it went on from there");
        let targets = HopFilter { targets: true, ..first.clone() };
        assert!(targets.hears(&allowed, Says::Target) && !first.hears(&allowed, Says::Target));
        assert!(!with(|it| it.party = Some(Party::of(crate::TenantId(Uuid::nil()), None))));
    }

    #[test]
    fn the_missing_hop_is_named() {
        let call = CallId { node: NodeId(1), serial: 7 };
        let (caller, allowed) =
            (hop(Station::Caller, HopEnd::Lost), hop(Station::Authorizer, HopEnd::Allowed));
        let (routed, given) = (
            HopRecord { node: Some(NodeId(9)), ..hop(Station::Router, HopEnd::Lost) },
            hop(Station::Target, HopEnd::Answered),
        );
        let told = |hops: &[HopRecord], there: &[u64]| {
            missing(call, hops, &there.iter().copied().map(NodeId).collect::<Vec<_>>()).unwrap_or_default()
        };
        assert_eq!(told(&[caller, allowed, routed, given], &[1, 9]), "");
        assert_eq!(told(&[caller, allowed, hop(Station::Router, HopEnd::Offline)], &[1]), "");
        assert_eq!(told(&[caller, hop(Station::Authorizer, HopEnd::Denied)], &[1]), "");
        for (hops, there, expected) in [
            (
                vec![caller, allowed, routed],
                vec![1],
                "handed it to node 0000000000000009, which does not answer",
            ),
            (vec![caller, allowed, routed], vec![1, 9], "node 0000000000000009, which has no record"),
            (vec![caller, allowed], vec![1, 9], "sent it on to the routers"),
            (vec![caller], vec![1], "no authorizer"),
            (vec![], vec![], "process 0000000000000001, where the call came in, does not answer"),
            (vec![], vec![1], "process 0000000000000001, where the call came in, has no record"),
        ] {
            let told = told(&hops, &there);
            assert!(told.contains(expected), "{told}");
        }
    }
}
