//! How does NATS write claims down and sign them? JWTs by ed25519, between its own form of keys (ADR-14). Pure.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use nkeys::{KeyPair, KeyPairType};
use serde::Serialize;
use serde::de::DeserializeOwned;

const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

/// Why claims could not be signed or read.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// A seed of another kind, or none at all.
    #[error("this is no seed of an account key, which begins with SA: {0}")]
    Seed(String),
    /// It is no JWT, or its claims are others.
    #[error("these are no claims that are known here: {0}")]
    Unreadable(String),
    /// The key does not sign.
    #[error("the claims could not be signed: {0}")]
    Unsigned(String),
}

/// The key that signs answers, out of its seed.
///
/// # Errors
/// When it is another kind of key's.
pub fn issuer(seed: &str) -> Result<KeyPair, JwtError> {
    let key = KeyPair::from_seed(seed.trim()).map_err(|error| JwtError::Seed(error.to_string()))?;
    match key.key_pair_type() {
        KeyPairType::Account => Ok(key),
        other => Err(JwtError::Seed(format!("it is of kind {other:?}"))),
    }
}

/// The JWT of these claims.
///
/// # Errors
/// When they have no JSON, or the key does not sign.
pub fn sign(claims: &impl Serialize, issuer: &KeyPair) -> Result<String, JwtError> {
    let claims = serde_json::to_vec(claims).map_err(|error| JwtError::Unsigned(error.to_string()))?;
    let text = format!("{}.{}", BASE64.encode(HEADER), BASE64.encode(claims));
    let signature = issuer.sign(text.as_bytes()).map_err(|error| JwtError::Unsigned(error.to_string()))?;
    Ok(format!("{text}.{}", BASE64.encode(signature)))
}

/// The claims of a JWT. Who signed them is not looked at: where they come from, nobody but NATS says anything.
///
/// # Errors
/// When it is none, or has others.
pub fn claims<T: DeserializeOwned>(jwt: &[u8]) -> Result<T, JwtError> {
    let unreadable = |error: &dyn std::fmt::Display| JwtError::Unreadable(error.to_string());
    let mut parts = jwt.split(|byte| *byte == b'.');
    let (_, claims) = (parts.next(), parts.next().ok_or_else(|| unreadable(&"it has one part"))?);
    let claims = BASE64.decode(claims).map_err(|error| unreadable(&error))?;
    serde_json::from_slice(&claims).map_err(|error| unreadable(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_read_and_verified() {
        let key = KeyPair::new_account();
        let jwt = sign(&serde_json::json!({"sub": "x"}), &key).unwrap();
        assert_eq!(claims::<serde_json::Value>(jwt.as_bytes()).unwrap(), serde_json::json!({"sub": "x"}));
        let (text, signature) = jwt.rsplit_once('.').unwrap();
        key.verify(text.as_bytes(), &BASE64.decode(signature).unwrap()).unwrap();
        for other in ["", "x", "x.y", "x.!.z", "eyJ9.eyJ9.eyJ9"] {
            assert!(claims::<serde_json::Value>(other.as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn only_an_accounts_seed_makes_an_issuer() {
        let account = KeyPair::new_account();
        assert_eq!(issuer(&account.seed().unwrap()).unwrap().public_key(), account.public_key());
        for other in [KeyPair::new_user().seed().unwrap(), account.public_key(), String::new()] {
            assert!(matches!(issuer(&other), Err(JwtError::Seed(_))));
        }
    }
}
