//! What is an access token? The one secret of a device; only its hash is ever stored or sent on.

use std::fmt;

use rpc::CredentialHash;
use sha2::{Digest, Sha256};

use super::{Invalid, RegistryError};

/// The longest token, in characters. ThingsBoard's own are 20, those given by hand there at most 32.
pub const MAX_TOKEN_CHARS: usize = 64;

/// Characters of a generated token: 24 of 62 kinds are 142 bits.
const GENERATED_CHARS: usize = 24;
/// Letters and digits alone: nothing to escape in a shell, a URL or a CSV file, and no leading `-`.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// A device's access token: its user name in MQTT, a segment of its path in HTTP and CoAP.
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
        let mut token = String::with_capacity(GENERATED_CHARS);
        let mut random = [0; 2 * GENERATED_CHARS];
        while token.len() < GENERATED_CHARS {
            getrandom::fill(&mut random).map_err(|error| RegistryError::Randomness(error.to_string()))?;
            // Bytes from 4 × 62 on are thrown away: taking them modulo 62 would favour some characters.
            let fair = random.iter().filter_map(|&byte| {
                (byte < 248).then(|| ALPHABET.get(usize::from(byte % 62)).copied().map(char::from))?
            });
            token.extend(fair.take(GENERATED_CHARS - token.len()));
        }
        Ok(Token(token))
    }

    /// A token that somebody chose.
    ///
    /// # Errors
    /// Unless it is 1 to [`MAX_TOKEN_CHARS`] of the characters that may stand in a URL path segment as they are
    /// (RFC 3986 §3.3: letters, digits and `-._~!$&'()*+,;=:@`), and neither `.` nor `..`, which paths resolve.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let fits = (1..=MAX_TOKEN_CHARS).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte))
            && text != "."
            && text != "..";
        if fits {
            return Ok(Token(text.to_owned()));
        }
        Err(Invalid {
            field: "token",
            expected: format!("1 to {MAX_TOKEN_CHARS} of A-Z a-z 0-9 and -._~!$&'()*+,;=:@"),
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn generated_tokens_are_tokens_and_differ() {
        let tokens: HashSet<String> = (0..1000).map(|_| Token::generate().unwrap().0).collect();
        assert_eq!(tokens.len(), 1000);
        for token in tokens {
            assert_eq!(token.len(), GENERATED_CHARS);
            assert_eq!(Token::parse(&token).unwrap().reveal(), token);
        }
    }

    #[test]
    fn chosen_tokens_go_into_a_path_and_a_user_name() {
        for token in ["A1_TEST_TOKEN", "a", "a+b=", "...", &"x".repeat(64)] {
            assert!(Token::parse(token).is_ok(), "{token}");
        }
        for token in ["", ".", "..", "a/b", "a b", "a%b", "a?b", "a#b", "é", "a\0", &"x".repeat(65)] {
            assert!(Token::parse(token).is_err(), "{token:?}");
        }
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
