//! How does a system of ours live? On this machine by `switchboard up` and `switchboard cluster`: one process or many,
//! with a NATS server of their own; beyond its end by `switchboard backup` and `switchboard restore`. And how is one
//! that runs anywhere? `status`, `doctor` and `log-level`.

pub(crate) mod access;
mod addresses;
pub(crate) mod backup;
pub(crate) mod cluster;
mod data_dir;
mod demo;
pub(crate) mod doctor;
mod guard;
pub(crate) mod health;
pub(crate) mod log_level;
mod nats;
mod ports;
pub(crate) mod restore;
pub(crate) mod status;
pub(crate) mod up;
