//! How does a system of ours live on this machine? `switchboard up` and `switchboard cluster`: one process or many,
//! with a NATS server of their own.

pub(crate) mod access;
mod addresses;
pub(crate) mod cluster;
mod data_dir;
mod demo;
mod guard;
mod nats;
pub(crate) mod up;
