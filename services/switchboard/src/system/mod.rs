//! How does a system of ours live? On this machine by `switchboard up` and `switchboard cluster`: one process or many,
//! with a NATS server of their own; and beyond its end by `switchboard backup` and `switchboard restore`.

pub(crate) mod access;
mod addresses;
pub(crate) mod backup;
pub(crate) mod cluster;
mod data_dir;
mod demo;
mod guard;
pub(crate) mod health;
mod nats;
pub(crate) mod restore;
pub(crate) mod up;
