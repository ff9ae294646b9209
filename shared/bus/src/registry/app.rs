//! What is an application? A program of a tenant's that calls devices: what it may, and the keys that it shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use boot::config::Networks;
use rpc::{AppId, CredentialHash, CustomerId, KeyId, Role, TenantId};
use serde::{Deserialize, Serialize};

use super::token::{credential_of, random_text};
use super::{Invalid, RegistryError};

/// Keys of one application that may live at a time: the one in use, and the next.
pub const MAX_KEYS: usize = 2;
/// The most customers or methods that an application's scope names.
const MAX_SCOPE: usize = 256;
/// What a network must be.
const NETWORK: &str = "networks by their first address, as 10.0.0.0/8 or fd00::/8, or addresses";
/// The longest method, in characters.
pub const MAX_METHOD_CHARS: usize = 255;
/// How long a key lasts that names no time of its own, in seconds.
pub const DEFAULT_KEY_LASTS_S: u64 = 90 * 86_400;

/// What a key begins with: secret scanners know it by that.
const PREFIX: &str = "swbk_";
/// Of 62 kinds each: 256 bits.
const SECRET_CHARS: usize = 43;
const CHECK_CHARS: usize = 6;
const ID_CHARS: usize = 16;

/// An application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its tenant, whose devices alone it may reach; never changes.
    pub tenant: TenantId,
    /// Unique in the tenant.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Whether it keeps all tenants, and not its own alone; it calls devices of its own in any case.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_tenants: bool,
    /// The customers whose devices it may reach; none: all devices of the tenant, also those of nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customers: Option<BTreeSet<CustomerId>>,
    /// Labels that a device must bear for it to be reached.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The methods that it may call; none: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<BTreeSet<String>>,
    /// The networks from which its keys are taken, as 10.0.0.0/8; none: from everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<BTreeSet<String>>,
    /// At most [`MAX_KEYS`] that live.
    #[serde(default)]
    pub keys: BTreeMap<KeyId, KeyRecord>,
}

/// What is kept of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The SHA-256 of its text: 256 random bits need no slower hash.
    pub hash: CredentialHash,
    /// When it was made, in seconds since 1970.
    pub made_s: u64,
    /// When it ends, in seconds since 1970.
    pub expires_s: u64,
}

impl App {
    /// Whether that key is one of its, and has not ended.
    pub fn has_key(&self, id: KeyId, now_s: u64) -> bool {
        self.keys.get(&id).is_some_and(|key| key.expires_s > now_s)
    }

    /// Whether a device of that customer, with those labels, is there for it.
    pub fn reaches(&self, customer: Option<CustomerId>, labels: &BTreeMap<String, String>) -> bool {
        let is_within = |all: &BTreeSet<CustomerId>| customer.is_some_and(|it| all.contains(&it));
        self.customers.as_ref().is_none_or(is_within)
            && self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Whether it may call that method.
    pub fn may_call(&self, method: &str) -> bool {
        self.methods.as_ref().is_none_or(|all| all.contains(method))
    }

    /// Whether its scope is its whole tenant, all methods with it.
    pub fn is_whole(&self) -> bool {
        self.customers.is_none() && self.labels.is_empty() && self.methods.is_none()
    }

    /// What it may reach, in words, with the names of its tenant and customers.
    pub fn scope(&self, tenant: &str, customers: Option<Vec<String>>) -> String {
        let devices = customers.map_or_else(
            || format!("all devices of {tenant}"),
            |customers| format!("devices of {}", customers.join(", ")),
        );
        let labelled = match self.labels.is_empty() {
            true => String::new(),
            false => format!(" with {}", crate::changes::in_words(&self.labels)),
        };
        let listed = |how: &str, all: Option<&BTreeSet<String>>| {
            let all = all.map(|all| all.iter().cloned().collect::<Vec<_>>().join(", "));
            all.map_or_else(String::new, |all| format!(", {how} {all}"))
        };
        let (by, from) = (listed("by", self.methods.as_ref()), listed("from", self.networks.as_ref()));
        format!("{devices}{labelled}{by}{from}")
    }

    /// Checks its name and scope.
    ///
    /// # Errors
    /// With what breaks a rule.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        super::check_name(&self.name)?;
        super::check_labels(&self.labels)?;
        self.methods.iter().flatten().try_for_each(|it| check_method(it))?;
        for network in self.networks.iter().flatten() {
            let one = network.parse::<Networks>().ok().filter(|it| !it.is_empty() && !network.contains(','));
            one.ok_or_else(|| Invalid { field: "networks", expected: NETWORK.to_owned() })?;
        }
        if self.all_tenants && !self.is_whole() {
            let expected = "of an application without customers, labels and methods".to_owned();
            return Err(Invalid { field: "allTenants", expected });
        }
        let sizes = [
            ("customers", self.customers.as_ref().map(BTreeSet::len)),
            ("methods", self.methods.as_ref().map(BTreeSet::len)),
            ("networks", self.networks.as_ref().map(BTreeSet::len)),
        ];
        for (field, size) in sizes {
            if size.is_some_and(|size| size == 0 || size > MAX_SCOPE) {
                return Err(Invalid { field, expected: format!("1 to {MAX_SCOPE}, or not given: all") });
            }
        }
        Ok(())
    }
}

/// Checks the name of a method.
///
/// # Errors
/// Unless it is 1 to [`MAX_METHOD_CHARS`] characters without control characters.
pub fn check_method(method: &str) -> Result<(), Invalid> {
    if (1..=MAX_METHOD_CHARS).contains(&method.chars().count()) && !method.chars().any(char::is_control) {
        return Ok(());
    }
    let expected = format!("1 to {MAX_METHOD_CHARS} characters, without control characters");
    Err(Invalid { field: "method", expected })
}

/// An application's key: `swbk_<its id>_<43 characters and a checksum of 6>`.
///
/// Never stored, logged or sent on: `Debug` hides it, and it is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct AppKey {
    id: KeyId,
    text: String,
}

impl AppKey {
    /// A new key of 256 bits out of the operating system's randomness.
    ///
    /// # Errors
    /// When the operating system gives none.
    pub fn generate() -> Result<Self, RegistryError> {
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(|error| RegistryError::Randomness(error.to_string()))?;
        let id = KeyId(u64::from_be_bytes(id));
        let body = format!("{PREFIX}{id}_{}", random_text(SECRET_CHARS)?);
        Ok(AppKey { id, text: format!("{body}{}", check_of(&body)) })
    }

    /// Reads one that was shown. None: it is none, as its checksum says; whether anybody has it is another question.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let is_long_enough = id.len() == ID_CHARS && secret.len() == SECRET_CHARS + CHECK_CHARS;
        let (body, check) = text.split_at_checked(text.len().checked_sub(CHECK_CHARS)?)?;
        let is_key = is_long_enough && check_of(body) == check;
        is_key.then(|| id.parse().ok().map(|id| AppKey { id, text: text.to_owned() }))?
    }

    /// Its id, which is no secret.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The key itself, to be shown to its owner once.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// Its hash, which is all that others learn.
    pub fn credential(&self) -> CredentialHash {
        credential_of(self.text.as_bytes())
    }
}

impl fmt::Debug for AppKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AppKey({}…)", self.id)
    }
}

/// A key that is being made, and for which application.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// The application.
    pub app: AppId,
    /// The key.
    pub key: AppKey,
    /// Now, in seconds since 1970.
    pub now_s: u64,
    /// How long it lasts, in seconds.
    pub lasts_s: u64,
}

impl NewKey {
    /// What is kept of it.
    pub(super) fn record(&self) -> KeyRecord {
        let (made_s, expires_s) = (self.now_s, self.now_s.saturating_add(self.lasts_s));
        KeyRecord { hash: self.key.credential(), made_s, expires_s }
    }
}

/// CRC-32 (ISO-HDLC) in base 62: a mistyped key is none without anybody being asked, and a scanner knows a real one.
fn check_of(body: &str) -> String {
    let crc = body.bytes().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    });
    let mut left = !crc;
    let digits = std::iter::repeat_with(|| {
        let digit = super::token::ALPHABET.get((left % 62) as usize).copied().unwrap_or(b'A');
        left /= 62;
        char::from(digit)
    });
    digits.take(CHECK_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_key_is_known_by_its_form_and_its_checksum() {
        let key = AppKey::generate().unwrap();
        assert_eq!(key.reveal().len(), 5 + 16 + 1 + 49);
        assert_eq!(AppKey::parse(key.reveal()).as_ref(), Some(&key));
        assert!(!format!("{key:?}").contains(&key.reveal()[22..]));
        for place in 0..key.reveal().len() {
            let mut bytes = key.reveal().as_bytes().to_vec();
            bytes[place] = if bytes[place] == b'x' { b'y' } else { b'x' };
            assert_eq!(AppKey::parse(std::str::from_utf8(&bytes).unwrap()), None, "{place}");
        }
        for other in ["", "swbk_", "swbk__", "swbk_é_", &key.reveal()[1..], &format!("{}A", key.reveal())] {
            assert_eq!(AppKey::parse(other), None, "{other}");
        }
        // As every other implementation has it.
        assert_eq!(check_of("123456789"), check_digits(0xCBF4_3926));
    }

    fn check_digits(mut crc: u32) -> String {
        let mut text = String::new();
        for _ in 0..CHECK_CHARS {
            text.push(char::from(super::super::token::ALPHABET[(crc % 62) as usize]));
            crc /= 62;
        }
        text
    }

    #[test]
    fn a_scope_is_all_of_what_it_names() {
        let customer = CustomerId(Uuid::from_u128(1));
        let open = App {
            tenant: TenantId(Uuid::from_u128(9)),
            name: "backend".into(),
            role: Role::Caller,
            all_tenants: false,
            customers: None,
            labels: BTreeMap::new(),
            methods: None,
            networks: None,
            keys: BTreeMap::new(),
        };
        let labels = |text: &str| BTreeMap::from([("zone".to_owned(), text.to_owned())]);
        assert!(open.reaches(None, &labels("a")) && open.may_call("anything"));
        let narrow = App {
            customers: Some([customer].into()),
            labels: labels("a"),
            methods: Some(["blink".to_owned()].into()),
            ..open
        };
        assert!(narrow.reaches(Some(customer), &labels("a")) && narrow.may_call("blink"));
        for (customer, labels) in [
            (None, labels("a")),
            (Some(CustomerId(Uuid::from_u128(2))), labels("a")),
            (Some(customer), labels("b")),
            (Some(customer), BTreeMap::new()),
        ] {
            assert!(!narrow.reaches(customer, &labels), "{customer:?} {labels:?}");
        }
        assert!(!narrow.may_call("onMsg"));
    }
}
