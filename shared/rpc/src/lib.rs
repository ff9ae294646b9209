//! What do the services say to each other? The contract: ids, calls, outcomes, budgets, subjects and their wire form.
//!
//! Everything here is pure: no clock is read and nothing is awaited. Times are handed in.

mod app;
mod beat;
mod budget;
mod call;
mod claim;
mod closed_list;
mod directory;
pub mod faults;
mod ids;
mod journal;
mod node_key;
mod order;
mod outcome;
mod quick_map;
mod rate;
mod share;
mod subjects;
mod ticket;
mod trace;
pub mod wire;

pub use app::{
    AppAsk, AppCall, AppCaller, AppDevice, AppDevices, AppIdentity, AppReply, AppRequest, DEFAULT_METHOD,
    EndedReply, EndedRequest, LateAnswer, OnceEnd, OnceRecord, Role, Sought, Target,
};
pub use beat::{BEAT_EVERY, Beat, Beats, Until};
pub use budget::{Budget, Deadline};
pub use call::{
    Answer, AnswerReply, Call, Delivery, DeliveryReply, JudgeReply, JudgeRequest, Routed, SessionEnd,
    SessionEvent, Takeover,
};
pub use claim::{
    CLAIM_ATTEMPT, CancelRequest, Claim, ClaimReply, ClaimRequest, CompareReply, CompareRequest, Generation,
    HeldClaim, LeaseRenewal, MARKER_TTL, Protocol, ReleaseRequest, Tally, part_of,
};
pub use directory::{
    AuthenticateReply, AuthenticateRequest, CredentialHash, DeviceStanding, DeviceState, Identity, LastSeen,
    ListRequest, PresenceReply, PresenceRequest, SEEN_LASTS, Whereabouts,
};
pub use ids::{
    AppId, CallId, CustomerId, DeviceId, KeyId, NODE_TAG_BITS, NodeId, ParseIdError, SessionId, TenantId,
};
pub use journal::{
    HopEnd, HopFilter, HopOf, HopRecord, Inspect, Instruct, Instructed, MAX_TOLD_HOPS, Report, Says, Station,
    Status, TAP_LEASE, Tap, Tapped, TappedHop, missing,
};
pub use node_key::NodeKey;
pub use order::{NodeReport, NodeState, Order, Pace};
pub use outcome::{Limit, Method, Outcome, OutcomeName, Seen};
pub use quick_map::{QuickMap, QuickSet};
pub use rate::{Rate, Rates, TokenBucket};
pub use share::{NoPlace, Party, Place, Shares, percent_of};
pub use subjects::{Subjects, UplinkKind};
pub use ticket::{Holder, Stamp, TICKET_LASTS_S, Ticket, TicketError, TicketKeys};
pub use trace::{MAX_TRACEPARENT_BYTES, ParseTraceError, Sampling, TraceContext};
