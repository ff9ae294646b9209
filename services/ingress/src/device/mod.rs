//! What holds for a device whatever it speaks? Each rule once; `mqtt`, `http` and `coap` keep framing, and the order in
//! which they write.
//!
//! A *visitor* is a device that this node knows: it has shown its access token, and may call. A *session* makes a
//! visitor callable: a claim stands for it. `target`, `caller`, `guesses`, `holding`, `limits`,
//! `offenders`, `shed`, `takeovers`, `uncalled` and `visitors` are pure.

pub mod admit;
pub mod caller;
pub mod guesses;
pub mod holding;
pub mod limits;
pub mod mailbox;
pub mod offenders;
pub mod relay;
pub mod sessions;
pub mod shares;
pub mod shed;
pub mod takeovers;
pub mod target;
pub mod uncalled;
pub mod visitors;
