//! What does a call between two devices cost? A load generator, and the systems it compares.
//!
//! One workload (`workload`) drives every system over real sockets; a system differs only in how its processes are
//! started and in the topics and payloads that its devices use (`systems`). The client runs on one thread and shares
//! the machine with the servers, so it is built to be cheap: see `link`.

pub mod bars;
pub mod cpu;
pub mod crowd;
pub mod frame;
pub mod framing;
pub mod learns;
pub mod link;
pub mod nats_frame;
pub mod noise;
pub mod report;
pub mod run;
pub mod scenario;
pub mod secure;
pub mod systems;
pub mod tally;
pub mod wire;
pub mod workload;
