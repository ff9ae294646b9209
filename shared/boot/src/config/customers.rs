//! Which customers does a setting name? By their ids, and few: each costs something.

use std::collections::BTreeSet;

use rpc::CustomerId;
use toml::de::DeValue;

use super::value::Value;

/// How many a setting may name.
pub const MAX_CUSTOMERS: usize = 32;

/// Customers of a setting; at most [`MAX_CUSTOMERS`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Customers(BTreeSet<CustomerId>);

impl Customers {
    /// Each once.
    pub fn iter(&self) -> impl Iterator<Item = CustomerId> {
        self.0.iter().copied()
    }
}

impl Value for Customers {
    fn expected() -> String {
        format!("ids of customers, several after commas, at most {MAX_CUSTOMERS}; empty: none")
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        Self::from_text(value.as_str()?)
    }

    fn from_text(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        let customers: BTreeSet<_> =
            text.split(',').map(|it| it.trim().parse().ok()).collect::<Option<_>>()?;
        (customers.len() <= MAX_CUSTOMERS).then_some(Self(customers))
    }

    fn to_toml(&self) -> Option<String> {
        let ids: Vec<_> = self.iter().map(|it| it.to_string()).collect();
        (!ids.is_empty()).then(|| format!("\"{}\"", ids.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_go_by_their_ids_and_are_few() {
        let id = |number: usize| format!("00000000-0000-4000-8000-{number:012}");
        let many = |count: usize| (0..count).map(id).collect::<Vec<_>>().join(" , ");
        let read = |text: &str| Customers::from_text(text).map(|it| it.iter().count());
        assert_eq!(read(""), Some(0));
        assert_eq!(read(&[id(1), id(2), id(1)].join(",")), Some(2));
        assert_eq!((read(&many(MAX_CUSTOMERS)), read(&many(MAX_CUSTOMERS + 1))), (Some(MAX_CUSTOMERS), None));
        assert_eq!((read("North"), read(&format!("{},", id(1)))), (None, None));
        let text = Customers::from_text(&many(2)).unwrap().to_toml().unwrap();
        assert_eq!(text, format!("\"{}, {}\"", id(0), id(1)));
    }
}
