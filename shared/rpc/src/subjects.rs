//! Where does each message go? Every NATS subject of the system, under one configurable prefix.

use crate::ids::{hex_digits, hex_text};
use crate::{AppId, CallId, DeviceId, NodeId, TenantId};

/// How the reply subjects begin that NATS makes up for a question from another account.
const BETWEEN_ACCOUNTS: &str = "_R_.";

/// What a device hands up besides calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UplinkKind {
    /// Time series.
    Telemetry,
    /// Client-side attributes.
    Attributes,
}

impl UplinkKind {
    /// The last token of the uplink subject.
    pub const fn as_str(self) -> &'static str {
        match self {
            UplinkKind::Telemetry => "telemetry",
            UplinkKind::Attributes => "attributes",
        }
    }
}

/// The subjects of one Switchboard; several can share a NATS account under prefixes of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects {
    prefix: String,
}

impl Subjects {
    /// Subjects below `prefix` (the setting `nats.prefix`, by default `swb`).
    pub fn new(prefix: impl Into<String>) -> Self {
        Subjects { prefix: prefix.into() }
    }

    /// The prefix, which also begins the names of the KV buckets.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Ingress → authorizer: who holds this credential?
    pub fn authenticate(&self) -> String {
        self.under("authenticate")
    }

    /// Ingress → authorizer: `getDevices`.
    pub fn list(&self) -> String {
        self.under("list")
    }

    /// Ingress → authorizer: a call to be judged.
    pub fn call(&self) -> String {
        self.under("call")
    }

    /// Api → authorizer: an application's call to be judged. Apart from devices': old copies would take it for one.
    pub fn app_call(&self) -> String {
        self.under("appcall")
    }

    /// Api → authorizer: what an application wants to know.
    pub fn app(&self) -> String {
        self.under("app")
    }

    /// An application → authorizer: all that applications call over NATS. The tokens that stand for `*` are its tenant,
    /// itself, and the device that it calls; NATS says who may publish which.
    pub fn app_calls(&self) -> String {
        self.under("app.*.*.call.*")
    }

    /// The tenant, the application and the device out of a subject of [`app_calls`](Self::app_calls).
    pub fn app_called<'a>(&self, subject: &'a str) -> Option<(TenantId, AppId, &'a str)> {
        let rest = subject.strip_prefix(self.prefix.as_str())?.strip_prefix(".app.")?;
        let mut tokens = rest.splitn(4, '.');
        let (tenant, app) = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?);
        (tokens.next()? == "call").then_some(())?;
        Some((tenant, app, tokens.next()?))
    }

    /// Api → one api: what has become of a call that it made?
    pub fn ended(&self, api: NodeId) -> String {
        self.under(&format!("ended.{api}"))
    }

    /// Ingress → one api: a device has answered a call of its after the call's time.
    pub fn late(&self, api: NodeId) -> String {
        self.under(&format!("late.{api}"))
    }

    /// Authorizer → router: an allowed call.
    pub fn route(&self) -> String {
        self.under("route")
    }

    /// Router → authorizer: may a call that waited still be delivered?
    pub fn judge(&self) -> String {
        self.under("judge")
    }

    /// Authorizer → a tenant's external decision point: may this call go on?
    pub fn external_decision(&self, tenant: TenantId, name: &str) -> String {
        self.under(&format!("decide.{tenant}.{name}"))
    }

    /// Authorizer → router: who of these is online?
    pub fn presence(&self) -> String {
        self.under("presence")
    }

    /// Ingress → router: write a claim.
    pub fn claim(&self) -> String {
        self.under("claim")
    }

    /// Ingress → router: a session is no longer callable.
    pub fn release(&self) -> String {
        self.under("release")
    }

    /// Ingress → every router: a node is alive, and holds so many claims.
    pub fn lease(&self) -> String {
        self.under("lease")
    }

    /// Ingress → router: in which claims do we differ?
    pub fn compare(&self) -> String {
        self.under("compare")
    }

    /// Ingress → every router: a call's caller is gone.
    pub fn cancel(&self) -> String {
        self.under("cancel")
    }

    /// Router → everybody: what all hear at about the same time, once a second.
    pub fn beat(&self) -> String {
        self.under("beat")
    }

    /// Router → router: a call that waits, when its router stops.
    pub fn handover(&self) -> String {
        self.under("handover")
    }

    /// Router → one ingress node: it holds other claims than the router knows.
    pub fn claims_differ(&self, node: NodeId) -> String {
        self.under(&format!("event.claims.{node}"))
    }

    /// Router → one ingress node: deliver to a session.
    pub fn node(&self, node: NodeId) -> String {
        // Written for each call: without the formatter.
        [self.prefix.as_str(), ".node.", hex_text(&hex_digits(node.0))].concat()
    }

    /// The operator → one ingress node: what it is to do with its devices.
    pub fn operate(&self, node: NodeId) -> String {
        self.under(&format!("operate.{node}"))
    }

    /// The operator → every node.
    pub fn operate_all(&self) -> String {
        self.under("operate.all")
    }

    /// An operator or the API → every process of a service: how are you, and what do you know of calls?
    pub fn inspect(&self, service: &str) -> String {
        self.under(&format!("inspect.{service}"))
    }

    /// An operator → every process of a service: what it is to log or tell for a while.
    pub fn instruct(&self, service: &str) -> String {
        self.under(&format!("instruct.{service}"))
    }

    /// One process's reply inbox; its asks are numbered below it.
    pub fn inbox(&self, process: NodeId) -> String {
        self.under(&format!("reply.{process}"))
    }

    /// Whether a reply may go there: to a process's inbox, or to what NATS puts for one between its accounts. Whoever
    /// asks chooses the reply subject, and NATS does not check it; who answers has rights that the asker lacks.
    pub fn is_inbox(&self, subject: &str) -> bool {
        let below = subject.strip_prefix(self.prefix.as_str());
        below.is_some_and(|rest| rest.starts_with(".reply.")) || subject.starts_with(BETWEEN_ACCOUNTS)
    }

    /// Below it, JetStream delivers to one process what it watches and asks of the store.
    pub fn feed(&self, process: NodeId) -> String {
        self.under(&format!("feed.{process}"))
    }

    /// The same for a process that may read a part of the store alone: what others are delivered passes it by.
    pub fn read(&self, process: NodeId) -> String {
        self.under(&format!("read.{process}"))
    }

    /// JetStream's API where it is in another NATS account than who asks, with the last dot.
    pub fn store_api(&self) -> String {
        self.under("js.")
    }

    /// What an authorizer forwards with as reply subject, `inbox` the caller's: "no responders" comes back on it.
    pub fn bounce(&self, authorizer: NodeId, inbox: &str) -> String {
        self.under(&format!("bounce.{authorizer}.{inbox}"))
    }

    /// The same for an application that called over NATS: it is told of which of its calls.
    pub fn app_bounce(&self, authorizer: NodeId, call: CallId, inbox: &str) -> String {
        self.bounce(authorizer, &format!("app.{call}.{inbox}"))
    }

    /// Everything that can bounce to one authorizer.
    pub fn bounces(&self, authorizer: NodeId) -> String {
        self.under(&format!("bounce.{authorizer}.>"))
    }

    /// The caller's inbox out of a bounce subject, and an application's call; none if it is not one of `authorizer`'s.
    pub fn bounced_inbox<'a>(
        &self,
        authorizer: NodeId,
        subject: &'a str,
    ) -> Option<(Option<CallId>, &'a str)> {
        let inbox = subject.strip_prefix(self.under(&format!("bounce.{authorizer}.")).as_str())?;
        let of_app = inbox.strip_prefix("app.").and_then(|rest| rest.split_once('.'));
        let of_app = of_app.and_then(|(call, inbox)| Some((Some(call.parse().ok()?), inbox)));
        Some(of_app.unwrap_or((None, inbox)))
    }

    /// A node → the nodes of that [tag](NodeId::tag): a device answers a call that one of them gave it.
    pub fn answer(&self, tag: u16) -> String {
        self.under(&format!("answer.{tag}"))
    }

    /// Router → the older session's node: it has been taken over.
    pub fn takeover(&self, node: NodeId) -> String {
        self.under(&format!("event.takeover.{node}"))
    }

    /// Authorizers → every node: this device has changed.
    pub fn device_changed(&self, device: DeviceId) -> String {
        self.under(&format!("event.device.{device}"))
    }

    /// All of [`device_changed`](Self::device_changed).
    pub fn devices_changed(&self) -> String {
        self.under("event.device.*")
    }

    /// An authorizer → every node: it has loaded its directory afresh, and may have missed changes meanwhile.
    pub fn directory_loaded(&self) -> String {
        self.under("event.directory")
    }

    /// A node → whoever listens: a session began or ended.
    pub fn session_event(&self, device: DeviceId, what: &str) -> String {
        self.under(&format!("event.session.{device}.{what}"))
    }

    /// A node → whoever listens: a device's telemetry or attributes.
    pub fn uplink(&self, tenant: TenantId, device: DeviceId, kind: UplinkKind) -> String {
        self.under(&format!("uplink.{tenant}.{device}.{}", kind.as_str()))
    }

    fn under(&self, rest: &str) -> String {
        format!("{}.{rest}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_goes_to_an_inbox_and_nowhere_else() {
        let subjects = Subjects::new("swb");
        for inbox in [format!("{}.17", subjects.inbox(NodeId(7))).as_str(), "_R_.l5qFCF.XBHvWt"] {
            assert!(subjects.is_inbox(inbox), "{inbox}");
        }
        let node = subjects.node(NodeId(7));
        let bounce = subjects.bounce(NodeId(1), "swb.reply.0000000000000007.17");
        for other in [
            &node,
            &bounce,
            "swb.route",
            "swb.replying",
            "swb2.reply.1.1",
            "$KV.swb_devices.x",
            "_R_",
            "$SYS._INBOX.a.b",
            "",
        ] {
            assert!(!subjects.is_inbox(other), "{other}");
        }
    }

    #[test]
    fn a_bounce_gives_the_callers_inbox_back_to_its_authorizer_alone() {
        let subjects = Subjects::new("swb");
        let inbox = format!("{}.17", subjects.inbox(NodeId(7)));
        let bounce = subjects.bounce(NodeId(1), &inbox);
        assert_eq!(bounce, "swb.bounce.0000000000000001.swb.reply.0000000000000007.17");
        assert_eq!(subjects.bounced_inbox(NodeId(1), &bounce), Some((None, inbox.as_str())));
        assert_eq!(subjects.bounced_inbox(NodeId(2), &bounce), None);
        let call = CallId { node: NodeId(1), serial: 0xab };
        let bounce = subjects.app_bounce(NodeId(1), call, &inbox);
        assert_eq!(subjects.bounced_inbox(NodeId(1), &bounce), Some((Some(call), inbox.as_str())));
        // Where the prefix of all subjects is that word.
        let subjects = Subjects::new("app");
        let bounce = subjects.bounce(NodeId(1), "app.reply.0000000000000007.17");
        let inbox = (None, "app.reply.0000000000000007.17");
        assert_eq!(subjects.bounced_inbox(NodeId(1), &bounce), Some(inbox));
    }

    #[test]
    fn a_call_over_nats_is_of_whom_its_subject_says() {
        let subjects = Subjects::new("swb");
        let id = |n| uuid::Uuid::from_u128(n);
        let (tenant, app) = (TenantId(id(1)), AppId(id(2)));
        let subject = |rest: &str| format!("swb.app.{tenant}.{app}.{rest}");
        assert_eq!(subjects.app_called(&subject("call.lamp-1")), Some((tenant, app, "lamp-1")));
        let nobody = format!("swb.app.{tenant}.backend.call.lamp-1");
        for other in [&subject("call"), &subject("list.lamp-1"), &nobody, "swb.app", "swb.appcall", ""] {
            assert_eq!(subjects.app_called(other), None, "{other}");
        }
    }
}
