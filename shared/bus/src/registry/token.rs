//! What is an access token? The one secret of a device; only its hash is ever stored or sent on.

use std::fmt;

use rpc::CredentialHash;
use sha2::{Digest, Sha256};

use super::{Invalid, RegistryError};

/// The longest token, in bytes of UTF-8: one Uri-Path option of CoAP (RFC 7252 §5.10). ThingsBoard's own have 20.
pub const MAX_TOKEN_BYTES: usize = 255;

/// Characters of the shortest chosen token that is not soon guessed, if they are chosen well.
pub const MIN_STRONG_CHARS: usize = 16;

/// Characters of a generated token: 24 of 62 kinds are 142 bits.
const GENERATED_CHARS: usize = 24;
/// Letters and digits alone: nothing to escape in a shell, a URL or a CSV file, and no leading `-`.
pub(super) const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// A device's access token: its user name in MQTT, a segment of its path in HTTP (percent-encoded, RFC 3986 §2.1) and
/// CoAP (its bytes as they are).
///
/// Never stored, logged or sent to another service: `Debug` hides it, and it is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A new token out of the operating system's randomness.
    ///
    /// # Errors
    /// When the operating system gives none.
    pub fn generate() -> Result<Self, RegistryError> {
        random_text(GENERATED_CHARS).map(Token)
    }

    /// A token that somebody chose: fleets bring theirs along.
    ///
    /// # Errors
    /// Unless it is 1 to [`MAX_TOKEN_BYTES`] without control characters, and neither `.` nor `..`, which paths resolve.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let fits = (1..=MAX_TOKEN_BYTES).contains(&text.len())
            && !text.chars().any(char::is_control)
            && text != "."
            && text != "..";
        if fits {
            return Ok(Token(text.to_owned()));
        }
        Err(Invalid {
            field: "token",
            expected: format!(
                "1 to {MAX_TOKEN_BYTES} bytes of UTF-8 without control characters, and neither . nor .."
            ),
        })
    }

    /// Whether it has fewer than [`MIN_STRONG_CHARS`] characters.
    pub fn is_weak(&self) -> bool {
        self.0.chars().count() < MIN_STRONG_CHARS
    }

    /// The same, unless it is weak and that is not `allowed`.
    ///
    /// # Errors
    /// With what it must be.
    pub fn admit(self, allowed: bool) -> Result<Self, Invalid> {
        if allowed || !self.is_weak() {
            return Ok(self);
        }
        let expected = format!(
            "{MIN_STRONG_CHARS} characters or longer: a shorter one is guessed (--weak-token takes it)"
        );
        Err(Invalid { field: "token", expected })
    }

    /// The token itself, to be shown to its owner once.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Its hash, which is all that others learn.
    pub fn credential(&self) -> CredentialHash {
        credential_of(self.0.as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The hash under which the registry knows an access token; also of texts that cannot be one, which nobody holds.
pub fn credential_of(token: &[u8]) -> CredentialHash {
    CredentialHash::from_digest(Sha256::digest(token).into())
}

/// So many letters and digits out of the operating system's randomness.
pub(super) fn random_text(chars: usize) -> Result<String, RegistryError> {
    let mut text = String::with_capacity(chars);
    let mut random = [0; 64];
    while text.len() < chars {
        getrandom::fill(&mut random).map_err(|error| RegistryError::Randomness(error.to_string()))?;
        // Bytes from 4 × 62 on are thrown away: taking them modulo 62 would favour some characters.
        let fair = random.iter().filter_map(|&byte| {
            (byte < 248).then(|| ALPHABET.get(usize::from(byte % 62)).copied().map(char::from))?
        });
        text.extend(fair.take(chars - text.len()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn generated_tokens_are_tokens_and_differ() {
        let tokens: BTreeSet<String> = (0..1000).map(|_| Token::generate().unwrap().0).collect();
        assert_eq!(tokens.len(), 1000);
        for token in tokens {
            assert_eq!(token.len(), GENERATED_CHARS);
            assert_eq!(Token::parse(&token).unwrap().reveal(), token);
        }
    }

    #[test]
    fn chosen_tokens_go_into_a_path_and_a_user_name() {
        let longest = "x".repeat(255);
        for token in
            ["A1_TEST_TOKEN", "a", "a+b=", "...", "a/b", "a b", "a%2Fb", "a?b#c", "é", "温度", " ", &longest]
        {
            assert_eq!(Token::parse(token).unwrap().reveal(), token);
        }
        let (too_long, too_many_bytes) = ("x".repeat(256), "é".repeat(128));
        for token in ["", ".", "..", "a\0", "a\n", "\u{7f}", "\u{85}", &too_long, &too_many_bytes] {
            assert!(Token::parse(token).is_err(), "{token:?}");
        }
    }

    #[test]
    fn what_is_short_is_weak_and_what_is_made_up_is_not() {
        let token = |text: &str| Token::parse(text).unwrap();
        assert!(!Token::generate().unwrap().is_weak());
        assert!(token("0123456789abcde").is_weak() && !token("0123456789abcdef").is_weak());
        // Characters, not bytes.
        assert!(token(&"é".repeat(15)).is_weak());
        assert!(token("short").admit(true).is_ok());
        let refused = token("short").admit(false).unwrap_err().to_string();
        assert!(refused.starts_with("token must be 16 characters or longer"), "{refused}");
        assert!(!refused.contains("short "), "the token itself is not said");
    }

    #[test]
    fn the_hash_is_the_sha_256_of_the_text_and_debug_hides_the_token() {
        let token = Token::parse("abc").unwrap();
        assert_eq!(
            token.credential().as_str(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(!format!("{token:?}").contains("abc"));
    }
}
