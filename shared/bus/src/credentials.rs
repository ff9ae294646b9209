//! What does this process show NATS? Its files are read each time that it connects: they may be replaced while it runs.

use std::path::{Path, PathBuf};

use async_nats::Auth;
use nkeys::KeyPair;

use crate::connect::BusSettings;

/// Who this process is to NATS.
#[derive(Clone)]
pub(crate) struct Credentials {
    user: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    credentials_file: Option<PathBuf>,
    /// Beside the password: where NATS asks who a node is, its rights are for the id that follows from the key.
    key: String,
}

impl Credentials {
    pub(crate) fn new(settings: &BusSettings, key: String) -> Self {
        let BusSettings { user, password, password_file, credentials_file, .. } = settings.clone();
        Credentials { user, password, password_file, credentials_file, key }
    }

    /// What answers NATS' `nonce`; nothing where NATS lets everybody in.
    ///
    /// # Errors
    /// With the setting whose file is of no use, and why.
    pub(crate) fn show(&self, nonce: &[u8]) -> Result<Auth, String> {
        let mut shown = Auth::new();
        if let Some(file) = &self.credentials_file {
            let named = |why: &str| format!("nats.credentials_file {}: {why}", file.display());
            let text = read(file).map_err(|why| named(&why))?;
            let jwt =
                between(&text, "NATS USER JWT").ok_or_else(|| named("there is no JWT of a user in it"))?;
            let seed = between(&text, "USER NKEY SEED").ok_or_else(|| named("there is no seed in it"))?;
            let signed = KeyPair::from_seed(seed).and_then(|pair| pair.sign(nonce));
            shown.signature = Some(signed.map_err(|error| named(&error.to_string()))?);
            shown.jwt = Some(jwt.to_owned());
        } else if let Some(user) = &self.user {
            shown.password = match &self.password_file {
                Some(file) => Some(password(file)?),
                None => self.password.clone(),
            };
            (shown.username, shown.token) = (Some(user.clone()), Some(self.key.clone()));
        }
        Ok(shown)
    }
}

fn password(file: &Path) -> Result<String, String> {
    let named = |why: &str| format!("nats.password_file {}: {why}", file.display());
    let text = read(file).map_err(|why| named(&why))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(named("it is empty")),
        password => Ok(password.to_owned()),
    }
}

fn read(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| error.to_string())
}

/// The line between `-----BEGIN what-----` and the line of dashes that ends it.
fn between<'a>(text: &'a str, what: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {what}-----"))?;
    let (inside, _) = rest.split_once("------END")?;
    Some(inside.trim()).filter(|it| !it.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str) -> (tempfile::NamedTempFile, BusSettings) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        let credentials_file = Some(file.path().to_owned());
        (file, BusSettings { credentials_file, ..BusSettings::default() })
    }

    #[test]
    fn a_credentials_file_signs_and_a_new_one_counts() {
        let written = |jwt: &str, pair: &KeyPair| {
            let seed = pair.seed().unwrap();
            format!(
                "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n*** IMPORTANT ***\n\n\
                 -----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------\n"
            )
        };
        let (older, newer) = (KeyPair::new_user(), KeyPair::new_user());
        let (file, settings) = with_file(&written("a.b.c", &older));
        let credentials = Credentials::new(&settings, "key".to_owned());
        for (jwt, pair) in [("a.b.c", &older), ("d.e.f", &newer)] {
            std::fs::write(&file, written(jwt, pair)).unwrap();
            let shown = credentials.show(b"nonce").unwrap();
            assert_eq!((shown.jwt.as_deref(), shown.token), (Some(jwt), None));
            pair.verify(b"nonce", &shown.signature.unwrap()).unwrap();
        }
    }

    #[test]
    fn a_file_of_no_use_is_named_with_its_setting() {
        for (text, why) in [("", "JWT"), ("-----BEGIN NATS USER JWT-----\na\n------END", "seed")] {
            let (file, settings) = with_file(text);
            let error = Credentials::new(&settings, String::new()).show(b"").err().unwrap();
            assert!(error.contains(why) && error.contains(file.path().to_str().unwrap()), "{error}");
        }
        let (_file, settings) = with_file("\n");
        let settings = BusSettings {
            user: Some("us".into()),
            password_file: settings.credentials_file,
            ..BusSettings::default()
        };
        let error = Credentials::new(&settings, String::new()).show(b"").err().unwrap();
        assert!(error.starts_with("nats.password_file ") && error.ends_with("it is empty"), "{error}");
    }
}
