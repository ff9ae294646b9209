//! What does every command need? A way to the registry, names understood, changes recorded, and one way to speak.

pub(crate) mod api;
pub(crate) mod coap;
pub(crate) mod find;
pub(crate) mod output;
pub(crate) mod reach;
pub(crate) mod recorded;
pub(crate) mod registrar;
pub(crate) mod table;
pub(crate) mod via;
pub(crate) mod way;
