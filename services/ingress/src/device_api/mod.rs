//! What may a device say, and what does it read? ThingsBoard's device API as pure functions over bytes.
//!
//! Nothing here knows a protocol, reads a clock or awaits: MQTT, HTTP and CoAP frame the same texts.

mod answer;
mod refusal;
mod request;

pub use answer::{Beside, answer, answer_is_json, get_time, on_msg, session_limits};
pub use refusal::{Refusal, Status};
pub use request::{ApiLimits, MalformedRequest, Request, parse};
