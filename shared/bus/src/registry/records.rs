//! What does the registry hold? Its records, the keys they stand under, and what a name may be.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use rpc::{AppId, CredentialHash, CustomerId, DeviceId, TenantId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::app::App;

/// The longest name, in characters (as in ThingsBoard).
pub const MAX_NAME_CHARS: usize = 255;
/// The type of a device that was given none (as in ThingsBoard).
pub const DEFAULT_TYPE: &str = "default";
/// The most labels of a device.
pub const MAX_LABELS: usize = 32;
/// The longest key of a label, in characters.
pub const MAX_LABEL_KEY_CHARS: usize = 63;
/// The longest value of a label, in characters.
pub const MAX_LABEL_VALUE_CHARS: usize = 255;

/// A tenant: it owns customers and devices, and none of them sees another tenant's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Unique in the registry.
    pub name: String,
}

/// A customer: devices assigned to it may call each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Customer {
    /// Its tenant.
    pub tenant: TenantId,
    /// Unique in the tenant.
    pub name: String,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its tenant; never changes.
    pub tenant: TenantId,
    /// The customer it is assigned to, one of the same tenant.
    #[serde(default)]
    pub customer: Option<CustomerId>,
    /// Unique in the tenant.
    pub name: String,
    /// What kind of thing it is, which a tenant's policies may read.
    #[serde(rename = "type", default = "default_type", skip_serializing_if = "is_default_type")]
    pub kind: String,
    /// The operator's own words about it, which a tenant's policies may read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The hash of its access token. A credential key counts only if the device that it names bears this very hash.
    pub credential: CredentialHash,
    /// Whether that token is weak, which its hash does not say. False too where nobody looked when it was given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub weak_token: bool,
}

/// What of a device is to change; what is not named stays. As JSON, a merge patch (RFC 7396).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeviceChange {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its type.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its customer, or none.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    pub customer: Option<Option<CustomerId>>,
    /// The labels of these keys; none: no such label any more.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
}

/// What is named is some, though it be null.
fn named<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl DeviceChange {
    /// Another name.
    pub fn named(name: &str) -> Self {
        DeviceChange { name: Some(name.to_owned()), ..DeviceChange::default() }
    }

    /// Another customer, or none.
    pub fn assigned(customer: Option<CustomerId>) -> Self {
        DeviceChange { customer: Some(customer), ..DeviceChange::default() }
    }

    /// Checks its parts, and changes a device by them.
    ///
    /// # Errors
    /// With what breaks a rule.
    pub fn apply(&self, device: &mut Device) -> Result<(), Invalid> {
        self.name.iter().try_for_each(|name| check_name(name))?;
        self.kind.iter().try_for_each(|kind| check_type(kind))?;
        device.name = self.name.clone().unwrap_or(std::mem::take(&mut device.name));
        device.kind = self.kind.clone().unwrap_or(std::mem::take(&mut device.kind));
        device.customer = self.customer.unwrap_or(device.customer);
        for (key, value) in &self.labels {
            match value {
                Some(value) => device.labels.insert(key.clone(), value.clone()),
                None => device.labels.remove(key),
            };
        }
        check_labels(&device.labels)
    }
}

/// Which state of a record somebody has read: of others it differs, but for one in 2^64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(String);

impl Tag {
    /// Of what is said of a record.
    pub fn of(said: &impl Serialize) -> Self {
        let text = serde_json::to_string(said).unwrap_or_default();
        Tag(hex_sha256(&text).chars().take(16).collect())
    }

    /// Of what is said of a device.
    pub fn of_device(
        name: &str,
        kind: &str,
        customer: Option<CustomerId>,
        labels: &BTreeMap<String, String>,
    ) -> Self {
        Tag::of(&(name, kind, customer, labels))
    }

    /// One that was shown.
    pub fn shown(text: &str) -> Self {
        Tag(text.to_owned())
    }

    /// To be shown: hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn still(only: Option<&Tag>, now: Tag) -> Result<(), super::RegistryError> {
        if only.is_none_or(|only| *only == now) { Ok(()) } else { Err(super::RegistryError::Changed) }
    }
}

impl Tenant {
    /// Its state.
    pub fn tag(&self) -> Tag {
        Tag::of(self)
    }
}

impl Customer {
    /// Its state.
    pub fn tag(&self) -> Tag {
        Tag::of(self)
    }
}

impl Device {
    /// Its state, as far as a [`DeviceChange`] changes it.
    pub fn tag(&self) -> Tag {
        Tag::of_device(&self.name, &self.kind, self.customer, &self.labels)
    }
}

fn default_type() -> String {
    DEFAULT_TYPE.to_owned()
}

fn is_default_type(kind: &str) -> bool {
    kind == DEFAULT_TYPE
}

/// Everything that stood in the registry at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// All tenants.
    pub tenants: HashMap<TenantId, Tenant>,
    /// All customers.
    pub customers: HashMap<CustomerId, Customer>,
    /// All devices.
    pub devices: HashMap<DeviceId, Device>,
    /// All applications.
    pub apps: HashMap<AppId, App>,
}

/// What is wrong with a given value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} must be {expected}")]
pub struct Invalid {
    /// Which value.
    pub field: &'static str,
    /// What it must be.
    pub expected: String,
}

/// Checks the name of a tenant, customer or device.
///
/// # Errors
/// Unless it is 1 to [`MAX_NAME_CHARS`] characters without control characters, those that turn the direction of text or
/// break its lines among them, and without spaces at its ends.
pub fn check_name(name: &str) -> Result<(), Invalid> {
    check_text("name", name, 1, MAX_NAME_CHARS)
}

/// Checks the type of a device.
///
/// # Errors
/// As for a name.
pub fn check_type(kind: &str) -> Result<(), Invalid> {
    check_text("type", kind, 1, MAX_NAME_CHARS)
}

/// Checks the labels of a device.
///
/// # Errors
/// When there are more than [`MAX_LABELS`], or a key or value is too long or holds control characters.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Invalid> {
    if labels.len() > MAX_LABELS {
        return Err(Invalid { field: "labels", expected: format!("at most {MAX_LABELS}") });
    }
    labels.iter().try_for_each(|(key, value)| {
        check_text("the key of a label", key, 1, MAX_LABEL_KEY_CHARS)?;
        check_text("the value of a label", value, 0, MAX_LABEL_VALUE_CHARS)
    })
}

/// Whether a person who reads it could take the text for another one: controls, Unicode's `Bidi_Control`, and what ends
/// a line or a paragraph.
pub fn misleads(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn check_text(field: &'static str, text: &str, least: usize, most: usize) -> Result<(), Invalid> {
    let length = text.chars().count();
    if (least..=most).contains(&length) && text.trim() == text && !text.chars().any(misleads) {
        return Ok(());
    }
    Err(Invalid {
        field,
        expected: format!(
            "{least} to {most} characters, without control or bidi characters and without spaces at its ends"
        ),
    })
}

/// A key of the registry's bucket: [-/_=.a-zA-Z0-9] alone, hence names stand in keys as their hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key<'a> {
    Tenant(TenantId),
    Customer(CustomerId),
    Device(DeviceId),
    App(AppId),
    /// Makes a token unique: holds the device's id.
    Credential(&'a CredentialHash),
    /// Makes a tenant's name unique: holds the tenant's id.
    TenantName(&'a str),
    /// Makes a customer's name unique in its tenant: holds the customer's id.
    CustomerName(TenantId, &'a str),
    /// Makes a device's name unique in its tenant: holds the device's id.
    DeviceName(TenantId, &'a str),
    /// Makes an application's name unique in its tenant: holds the application's id.
    AppName(TenantId, &'a str),
}

impl Key<'_> {
    pub(super) fn text(self) -> String {
        match self {
            Key::Tenant(id) => format!("tenant.{id}"),
            Key::Customer(id) => format!("customer.{id}"),
            Key::Device(id) => format!("device.{id}"),
            Key::App(id) => format!("app.{id}"),
            Key::Credential(hash) => format!("credential.{}", hash.as_str()),
            Key::TenantName(name) => format!("tenant-name.{}", hex_sha256(name)),
            Key::CustomerName(tenant, name) => format!("customer-name.{tenant}.{}", hex_sha256(name)),
            Key::DeviceName(tenant, name) => format!("device-name.{tenant}.{}", hex_sha256(name)),
            Key::AppName(tenant, name) => format!("app-name.{tenant}.{}", hex_sha256(name)),
        }
    }
}

pub(super) fn hex_sha256(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn names_are_bounded_printable_and_trimmed() {
        for name in ["a", "Test Device A1", "Gerät №5", &"é".repeat(255)] {
            assert_eq!(check_name(name), Ok(()), "{name:?}");
        }
        let turned = ["a\u{202e}b", "\u{2066}a", "a\u{200f}", "a\u{61c}b", "a\u{2028}b", "a\u{2029}b"];
        for name in ["", " a", "a ", "a\nb", "a\u{7f}", "\u{85}", &"e".repeat(256)].into_iter().chain(turned)
        {
            let refused = check_name(name).unwrap_err().to_string();
            assert!(refused.starts_with("name must be 1 to 255 characters"), "{name:?}: {refused}");
        }
    }

    #[test]
    fn a_change_is_a_merge_patch_and_another_state_has_another_tag() {
        let mut device = Device {
            tenant: TenantId(Uuid::from_u128(1)),
            customer: None,
            name: "Pump".into(),
            kind: "default".into(),
            labels: [("room", "1"), ("site", "north")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            credential: CredentialHash::from_digest([7; 32]),
            weak_token: false,
        };
        let mut tags = vec![device.tag()];
        for (patch, expected) in [
            (r#"{"name":"Lamp"}"#, r#"["Lamp","default",null,{"room":"1","site":"north"}]"#),
            (
                r#"{"customer":"00000000-0000-0000-0000-000000000002"}"#,
                r#"["Lamp","default","00000000-0000-0000-0000-000000000002",{"room":"1","site":"north"}]"#,
            ),
            (
                r#"{"labels":{"room":null,"site":"south"},"type":"lamp"}"#,
                r#"["Lamp","lamp","00000000-0000-0000-0000-000000000002",{"site":"south"}]"#,
            ),
            (r#"{"customer":null}"#, r#"["Lamp","lamp",null,{"site":"south"}]"#),
        ] {
            let change: DeviceChange = serde_json::from_str(patch).unwrap();
            assert_eq!(
                serde_json::from_str::<DeviceChange>(&serde_json::to_string(&change).unwrap()).unwrap(),
                change
            );
            change.apply(&mut device).unwrap();
            let said = (&device.name, &device.kind, device.customer, &device.labels);
            assert_eq!(serde_json::to_string(&said).unwrap(), expected, "{patch}");
            tags.push(device.tag());
        }
        let distinct: std::collections::HashSet<_> = tags.iter().map(Tag::as_str).collect();
        assert_eq!(distinct.len(), tags.len());
        let refused = DeviceChange::named(" x").apply(&mut device).unwrap_err();
        assert_eq!((refused.field, device.name.as_str()), ("name", "Lamp"));
    }

    #[test]
    fn every_key_is_one_that_nats_takes() {
        let tenant = TenantId(Uuid::from_u128(1));
        let hash = CredentialHash::from_digest([0xab; 32]);
        for key in [
            Key::Tenant(tenant),
            Key::Customer(CustomerId(Uuid::from_u128(2))),
            Key::Device(DeviceId(Uuid::from_u128(3))),
            Key::Credential(&hash),
            Key::TenantName("* > . é"),
            Key::CustomerName(tenant, "* > . é"),
            Key::DeviceName(tenant, "* > . é"),
            Key::App(AppId(Uuid::from_u128(4))),
            Key::AppName(tenant, "* > . é"),
        ] {
            let text = key.text();
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte)), "{text}");
        }
    }
}
