//! What travels over the modelled NATS? The contract's own messages, unencoded, under topics instead of subjects.

use bus::registry::Device;
use bytes::Bytes;
use rpc::{
    AuthenticateReply, AuthenticateRequest, Beat, Call, CancelRequest, Claim, ClaimReply, ClaimRequest,
    CompareReply, CompareRequest, Delivery, DeliveryReply, DeviceId, DeviceState, LeaseRenewal, NodeId,
    Outcome, ReleaseRequest, Takeover,
};

/// A process: its place in the list of all that ever ran. One that is started again is another.
pub type Pid = usize;

/// Virtual time in microseconds.
pub type Micros = u64;

/// One millisecond of virtual time.
pub const MS: Micros = 1_000;

/// One second of virtual time.
pub const SECOND: Micros = 1_000_000;

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// `swb.authenticate`
    Authenticate,
    /// `swb.call`
    Call,
    /// `swb.route`
    Route,
    /// `swb.handover`
    Handover,
    /// `swb.claim`
    Claim,
    /// `swb.release`
    Release,
    /// `swb.lease`
    Lease,
    /// `swb.compare`
    Compare,
    /// `swb.cancel`
    Cancel,
    /// `swb.beat`
    Beat,
    /// `swb.node.<node>`
    Node(NodeId),
    /// `swb.event.takeover.<node>`
    Takeover(NodeId),
    /// `swb.event.claims.<node>`
    Differs(NodeId),
    /// `swb.event.device.*`
    DeviceChanged,
    /// `swb.event.directory`
    DirectoryLoaded,
    /// `swb.reply.<process>.<n>`
    Reply(Inbox),
    /// What JetStream takes.
    Store,
}

/// Where one answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inbox {
    /// Whose.
    pub process: Pid,
    /// Which of its questions.
    pub number: u64,
}

/// What is said on a message's reply subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyTo {
    /// The answer.
    Inbox(Inbox),
    /// That nobody was there, to the authorizer that forwards with it; it names the caller's inbox.
    Bounce(Inbox),
}

/// One message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Where to.
    pub topic: Topic,
    /// Where the answer goes.
    pub reply_to: Option<ReplyTo>,
    /// What it says.
    pub payload: Payload,
}

/// What a message says.
#[derive(Debug, Clone)]
pub enum Payload {
    /// The words alone.
    Nothing,
    /// NATS' word that nobody listened to what was published with this for its reply.
    NoResponders(ReplyTo),
    /// A message to itself.
    Echo(u64),
    /// Who holds this credential?
    Authenticate(AuthenticateRequest),
    /// He does, or nobody.
    Authenticated(AuthenticateReply),
    /// A call and its body.
    Call(Box<Call>, Bytes),
    /// An allowed call, its body, and the caller's inbox.
    Routed(Box<Call>, Bytes, Inbox),
    /// How a call ended.
    Outcome(Outcome, Bytes),
    /// Deliver.
    Delivery(Box<Delivery>, Bytes),
    /// How that ended.
    Delivered(DeliveryReply, Bytes),
    /// Write a claim.
    Claim(Box<ClaimRequest>),
    /// What came of it.
    Claimed(ClaimReply),
    /// A session is no longer callable.
    Release(ReleaseRequest),
    /// A node is alive.
    Lease(LeaseRenewal),
    /// In what do we differ?
    Compare(CompareRequest),
    /// In that.
    Compared(CompareReply),
    /// A call's caller is gone.
    Cancel(CancelRequest),
    /// A router's word to everybody.
    Beat(Beat),
    /// A session was taken over.
    Takeover(Takeover),
    /// A device has changed.
    Changed(DeviceState),
    /// To the store.
    Ask(StoreAsk),
    /// From the store.
    Said(StoreReply),
    /// From the store to a watch.
    Feed(u64, Feed),
}

/// Which bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bucket {
    /// Where each device is.
    Claims,
    /// Whose each device is.
    Registry,
}

/// What is asked of the store.
#[derive(Debug, Clone)]
pub enum StoreAsk {
    /// What stands there?
    Read(DeviceId),
    /// Write where that revision stands; none: nothing.
    Write(DeviceId, Claim, Option<u64>),
    /// Remove that revision.
    Remove(DeviceId, u64),
    /// A beat through the registry.
    Beat(Pid, u64),
    /// Watch a bucket, under this number.
    Watch(Bucket, u64),
}

/// What the store answers.
#[derive(Debug, Clone)]
pub enum StoreReply {
    /// That stands there: its revision, and the claim unless it is a removal's marker.
    Stands(Option<(u64, Option<Claim>)>),
    /// Written at this revision.
    Written(u64),
    /// Something else stands there.
    Contended,
}

/// What a watch is told.
#[derive(Debug, Clone)]
pub enum Feed {
    /// It is open; the bucket was made then, its last revision is this, and everything that stands there follows.
    Opened(Micros, u64),
    /// Everything has been told.
    Loaded,
    /// A claim.
    Claim(DeviceId, Claim, u64),
    /// None any more.
    Unclaimed(DeviceId, u64),
    /// A device's record.
    Device(DeviceId, Box<Device>),
    /// A beat of that process.
    Beat(Pid, u64),
    /// Nothing new.
    Heartbeat,
}
