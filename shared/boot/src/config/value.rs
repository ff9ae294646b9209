//! How each type of setting is read from TOML and from text, and written back.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use toml::de::DeValue;

/// What stands in a secret's place wherever settings are shown; hence no secret itself.
pub(super) const SHOWN_SECRET: &str = "(set)";

/// A type that a setting can have.
pub(super) trait Value: Sized {
    /// Whether the value may never be shown.
    const SECRET: bool = false;

    /// What a person should give, in words; a limit may say it more exactly.
    fn expected() -> String;

    fn from_toml(value: &DeValue<'_>) -> Option<Self>;

    /// From the environment or a flag, where a value has no quotes.
    fn from_text(text: &str) -> Option<Self>;

    /// `None` for an optional setting that is not set.
    fn to_toml(&self) -> Option<String>;
}

/// A value that must never be shown: `Debug` and `config print` say only that it is set.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself, for whoever must send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHOWN_SECRET)
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// One line for people.
    Pretty,
    /// One JSON object a line, fields flattened into it.
    Json,
}

impl LogFormat {
    const WORDS: [(&'static str, Self); 3] =
        [("auto", Self::Auto), ("pretty", Self::Pretty), ("json", Self::Json)];
}

impl Value for LogFormat {
    fn expected() -> String {
        "auto, pretty or json".to_owned()
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        Self::from_text(value.as_str()?)
    }

    fn from_text(text: &str) -> Option<Self> {
        Self::WORDS.into_iter().find_map(|(word, format)| (word == text).then_some(format))
    }

    fn to_toml(&self) -> Option<String> {
        Self::WORDS.into_iter().find_map(|(word, format)| (format == *self).then(|| quoted(word)))
    }
}

impl Value for bool {
    fn expected() -> String {
        "true or false".to_owned()
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        value.as_bool()
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// A whole number, for the limits that are ranges.
pub(super) trait Number: Value + PartialOrd + fmt::Display {}

macro_rules! numbers {
    ($($number:ty)+) => { $(
        impl Number for $number {}

        impl Value for $number {
            fn expected() -> String {
                "a whole number".to_owned()
            }

            fn from_toml(value: &DeValue<'_>) -> Option<Self> {
                let integer = value.as_integer()?;
                Self::from_str_radix(integer.as_str(), integer.radix()).ok()
            }

            /// Digits, with `_` between them as in TOML.
            fn from_text(text: &str) -> Option<Self> {
                let well_placed = !text.starts_with('_') && !text.ends_with('_') && !text.contains("__");
                well_placed.then(|| text.replace('_', "").parse().ok())?
            }

            fn to_toml(&self) -> Option<String> {
                Some(self.to_string())
            }
        }
    )+ };
}
numbers!(u16 u32 u64 usize);

impl Value for String {
    fn expected() -> String {
        "text without control characters".to_owned()
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        Self::from_text(value.as_str()?)
    }

    fn from_text(text: &str) -> Option<Self> {
        printable(text).then(|| text.to_owned())
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(self))
    }
}

impl Value for Secret {
    const SECRET: bool = true;

    fn expected() -> String {
        format!("text without control characters, and not {SHOWN_SECRET:?}, which is shown in its place")
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        Self::from_text(value.as_str()?)
    }

    fn from_text(text: &str) -> Option<Self> {
        (printable(text) && text != SHOWN_SECRET).then(|| Self(text.to_owned()))
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(SHOWN_SECRET))
    }
}

impl Value for SocketAddr {
    fn expected() -> String {
        "an IP address and a port, as 127.0.0.1:1883 or [::1]:1883".to_owned()
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        Self::from_text(value.as_str()?)
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

impl Value for PathBuf {
    fn expected() -> String {
        "a path, relative ones from the working directory".to_owned()
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        Self::from_text(value.as_str()?)
    }

    fn from_text(text: &str) -> Option<Self> {
        (printable(text) && !text.is_empty()).then(|| text.into())
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string_lossy()))
    }
}

/// Empty text means "not set", so that a flag can take back what a file set.
impl<T: Value> Value for Option<T> {
    const SECRET: bool = T::SECRET;

    fn expected() -> String {
        format!("{}; empty: none", T::expected())
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        if value.as_str() == Some("") { Some(None) } else { T::from_toml(value).map(Some) }
    }

    fn from_text(text: &str) -> Option<Self> {
        if text.is_empty() { Some(None) } else { T::from_text(text).map(Some) }
    }

    fn to_toml(&self) -> Option<String> {
        self.as_ref().and_then(T::to_toml)
    }
}

fn printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// A TOML basic string; only for text without control characters.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
