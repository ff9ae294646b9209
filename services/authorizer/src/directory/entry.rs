//! What is known of a device, and by what is it found?

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rpc::{AppDevice, CustomerId, DeviceId, TenantId};

use crate::policy::{Facts, Standing};

/// The SHA-256 of a token, in half the bytes of its text.
pub(super) type Digest = [u8; 32];

/// The number of the load in which something was last seen: what a load does not name again has vanished.
pub(super) type Load = u32;

/// A device. It changes by being replaced.
pub(super) struct Entry {
    pub(super) id: DeviceId,
    pub(super) credential: Digest,
    pub(super) name: Arc<str>,
    pub(super) like: Arc<Like>,
    pub(super) load: Seen,
    /// When the record of its credential was seen, if it is one of the holders.
    pub(super) credential_load: Seen,
}

/// What a device has in common with others: they share it.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Like {
    pub(super) tenant: TenantId,
    pub(super) customer: Option<CustomerId>,
    pub(super) kind: Arc<str>,
    pub(super) labels: BTreeMap<String, String>,
}

/// A [`Load`] that is set under the lock of all maps.
pub(super) struct Seen(AtomicU32);

impl Seen {
    pub(super) fn get(&self) -> Load {
        self.0.load(Relaxed)
    }

    pub(super) fn set(&self, load: Load) {
        self.0.store(load, Relaxed);
    }
}

impl Entry {
    pub(super) fn new(id: DeviceId, credential: Digest, name: Arc<str>, like: Arc<Like>, load: Load) -> Self {
        let seen = || Seen(AtomicU32::new(load));
        Entry { id, credential, name, like, load: seen(), credential_load: seen() }
    }

    /// Whose it is, as the policy asks.
    pub(super) fn standing(&self) -> Standing {
        let Like { tenant, customer, .. } = *self.like;
        Standing { device: self.id, tenant, customer }
    }

    /// Its customer within its tenant, if it is assigned to one.
    pub(super) fn group(&self) -> Option<(TenantId, CustomerId)> {
        Some((self.like.tenant, self.like.customer?))
    }

    pub(super) fn shown(&self) -> AppDevice {
        let (id, name, kind) = (self.id, self.name.as_ref().to_owned(), self.like.kind.as_ref().to_owned());
        let (customer, labels) = (self.like.customer, self.like.labels.clone());
        AppDevice { id, name, kind, customer, labels, online: false, place: None, seen: None }
    }

    pub(super) fn facts(&self) -> Facts {
        let Like { customer, kind, labels, .. } = &*self.like;
        let (name, kind, labels) = (self.name.clone(), kind.clone(), labels.clone());
        Facts { id: self.id, name, kind, customer: *customer, labels }
    }
}

/// An entry that a set finds by one part of it.
macro_rules! found_by {
    ($set:ident, $key:ty, $part:expr) => {
        pub(super) struct $set(pub(super) Arc<Entry>);

        impl Borrow<$key> for $set {
            fn borrow(&self) -> &$key {
                let part: fn(&Entry) -> &$key = $part;
                part(&self.0)
            }
        }

        impl Hash for $set {
            fn hash<H: Hasher>(&self, state: &mut H) {
                Borrow::<$key>::borrow(self).hash(state);
            }
        }

        impl Ord for $set {
            fn cmp(&self, other: &Self) -> Ordering {
                Borrow::<$key>::borrow(self).cmp(other.borrow())
            }
        }

        impl PartialOrd for $set {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl PartialEq for $set {
            fn eq(&self, other: &Self) -> bool {
                self.cmp(other).is_eq()
            }
        }

        impl Eq for $set {}
    };
}

found_by!(ById, DeviceId, |entry| &entry.id);
found_by!(ByCredential, Digest, |entry| &entry.credential);
found_by!(ByName, str, |entry| &entry.name);

/// An entry in the order of a list: by name, then by id.
pub(super) struct Listed(pub(super) Arc<Entry>);

impl Ord for Listed {
    fn cmp(&self, Listed(other): &Self) -> Ordering {
        let Listed(entry) = self;
        (&*entry.name, entry.id).cmp(&(&*other.name, other.id))
    }
}

impl PartialOrd for Listed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Listed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Listed {}
