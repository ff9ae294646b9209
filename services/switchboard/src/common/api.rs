//! How does a command ask an API of a running system? With a key, which stands in no command line.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bus::registry::AppKey;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, IF_MATCH};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::common::via::path_segment;
use crate::common::way::connector;

/// Where the key stands, beside the profiles.
const KEY_VARIABLE: &str = "SWITCHBOARD_KEY";
/// How long an API may take to answer; a call has its own time besides.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// The longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Entries of a page that is asked for.
const PAGE: usize = 500;

/// An API, and the key that is shown there.
pub(crate) struct Api {
    /// As `https://host:port`, without a slash at its end.
    url: String,
    key: AppKey,
    /// What for, for the audit.
    reason: String,
}

/// A profile of the file: where an API is, and which key is shown there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    api: String,
    key: String,
}

/// What an API refuses (RFC 9457).
#[derive(Deserialize)]
#[serde(default)]
struct Problem {
    title: String,
    detail: Option<String>,
    field: Option<String>,
    /// What is wrong with policies, which `detail` tells in words.
    faults: Option<Value>,
}

impl Default for Problem {
    fn default() -> Self {
        Problem { title: "the API does not say why".to_owned(), detail: None, field: None, faults: None }
    }
}

impl Api {
    /// The API of this URL, with the key of the environment or of the profile for that URL; or of this profile.
    ///
    /// # Errors
    /// When there is no key, or the profiles are readable for others.
    pub(crate) fn of(url: Option<&str>, profile: Option<&str>) -> anyhow::Result<Self> {
        let (url, key) = match (url, profile) {
            (_, Some(name)) => {
                let path = profiles_path();
                let Some(Profile { api, key }) = profiles(&path)?.remove(name) else {
                    bail!("there is no profile {name:?} in {}", path.display())
                };
                (url.map_or(api, str::to_owned), key)
            }
            (Some(url), None) => {
                let key = match std::env::var(KEY_VARIABLE).ok().filter(|key| !key.is_empty()) {
                    Some(key) => key,
                    None => key_for(url)?,
                };
                (url.to_owned(), key)
            }
            (None, None) => bail!("which API? --api URL or --profile NAME says it"),
        };
        let url = url.trim_end_matches('/').to_owned();
        let is_known = ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme));
        ensure!(is_known, "--api: {url:?} must begin with http:// or https://");
        let key = AppKey::parse(key.trim()).context("the key is none: is a part of it missing?")?;
        Ok(Api { url, key, reason: String::new() })
    }

    /// The same, which says what its changes are for.
    pub(crate) fn because(self, who: &str, why: &str) -> Self {
        let said = [who, why].into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>();
        Api { reason: said.join(": "), ..self }
    }

    /// What stands at a path below `/v1/`.
    ///
    /// # Errors
    /// When the API does not answer, or refuses; the error says which member is wrong.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask(Method::GET, path, None).await
    }

    /// The same; none: there is nothing of that name.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(crate) async fn find<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Option<T>> {
        let answer = self.exchange(Method::GET, path, None, ANSWER_WAIT).await?;
        if answer.status() == StatusCode::NOT_FOUND { Ok(None) } else { read(answer).map(Some) }
    }

    /// All entries of the list at a path, page by page.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(crate) async fn all<T: DeserializeOwned>(&self, list: &str, query: &str) -> anyhow::Result<Vec<T>> {
        let name = list.split('?').next().unwrap_or_default();
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let mut page: Value = self.get(&format!("{list}?limit={PAGE}{query}{after}")).await?;
            let entries = match name {
                "presence" | "policies/who" | "policies/whom" => "devices",
                name => name,
            };
            let entries = page.get_mut(entries).map(Value::take);
            all.extend(serde_json::from_value::<Vec<T>>(entries.unwrap_or_default()).context("not a page")?);
            match page.get("next").and_then(Value::as_str) {
                Some(next) => after = format!("&after={}", path_segment(next)),
                None => return Ok(all),
            }
        }
    }

    /// Changes something.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(crate) async fn change(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Value> {
        self.ask(method, &self.reasoned(path), body).await
    }

    /// The same, of what is in that state alone.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(crate) async fn change_of(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        state: &str,
    ) -> anyhow::Result<Value> {
        let (path, body) = (self.reasoned(path), body.map(|body| body.to_string()));
        let state = Some((IF_MATCH.as_str(), state));
        read(self.within(ANSWER_WAIT, self.exchange_once(method, &path, state, body)).await?)
    }

    /// A path that says what a change is for.
    pub(crate) fn reasoned(&self, path: &str) -> String {
        let sign = if path.contains('?') { '&' } else { '?' };
        match self.reason.as_str() {
            "" => path.to_owned(),
            reason => format!("{path}{sign}reason={}", path_segment(reason)),
        }
    }

    /// Asks something that changes nothing, or a change that needs no reason.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<T> {
        let body = body.map(|body| body.to_string());
        read(self.exchange(method, path, body, ANSWER_WAIT).await?)
    }

    /// Begins to listen to what stands at a path, which has no end; from behind `last_id`, if that was heard.
    ///
    /// # Errors
    /// When nobody is there. A response of another status than 200 says why.
    pub(crate) async fn listen(
        &self,
        path: &str,
        last_id: Option<&str>,
        wait: Duration,
    ) -> anyhow::Result<Response<Incoming>> {
        let last_id = last_id.map(|id| ("last-event-id", id));
        let begun = timeout(wait, self.open(Method::GET, path, last_id, String::new())).await;
        let begun = begun.context("it does not answer").and_then(|begun| begun);
        begun.with_context(|| format!("the API at {} could not be asked", self.url))
    }

    /// One request with its response, whatever its status.
    ///
    /// # Errors
    /// When nobody is there, or no answer came within `wait`.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        wait: Duration,
    ) -> anyhow::Result<Response<Bytes>> {
        self.within(wait, self.exchange_once(method, path, None, body)).await
    }

    async fn within(
        &self,
        wait: Duration,
        exchange: impl Future<Output = anyhow::Result<Response<Bytes>>>,
    ) -> anyhow::Result<Response<Bytes>> {
        let asked = timeout(wait, exchange).await;
        let response = asked.context("no answer came in time").and_then(|asked| asked);
        let response = response.with_context(|| format!("the API at {} could not be asked", self.url))?;
        ensure!(
            response.status() != StatusCode::UNAUTHORIZED,
            "the API at {} does not take this key",
            self.url
        );
        Ok(response)
    }

    async fn exchange_once(
        &self,
        method: Method,
        path: &str,
        header: Option<(&str, &str)>,
        body: Option<String>,
    ) -> anyhow::Result<Response<Bytes>> {
        let (head, body) = self.open(method, path, header, body.unwrap_or_default()).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the answer did not come to its end: {error}"))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }

    /// A request on a connection of its own, with one more header if given, and the response, whose body follows.
    async fn open(
        &self,
        method: Method,
        path: &str,
        header: Option<(&str, &str)>,
        body: String,
    ) -> anyhow::Result<Response<Incoming>> {
        let uri: Uri = format!("{}/v1/{path}", self.url).parse().context("not a URL")?;
        let host = uri.host().context("the URL names no host")?.to_owned();
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((name, port)).await?;
        let target = uri.path_and_query().map_or("/", |it| it.as_str());
        let mut request =
            Request::builder().method(method).uri(target).header(HOST, format!("{host}:{port}"));
        request = request.header(AUTHORIZATION, format!("Bearer {}", self.key.reveal()));
        let json = (!body.is_empty()).then_some((CONTENT_TYPE.as_str(), "application/json"));
        for (name, value) in json.into_iter().chain(header) {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).context("not a request")?;
        if !is_tls {
            return send(TokioIo::new(stream), request).await;
        }
        let name = ServerName::try_from(name.to_owned()).context("not a host's name")?;
        send(TokioIo::new(connector(None)?.connect(name, stream).await?), request).await
    }
}

/// What an API says, or why it refuses.
fn read<T: DeserializeOwned>(answer: Response<Bytes>) -> anyhow::Result<T> {
    let (head, body) = answer.into_parts();
    if head.status.is_success() {
        let body = if body.is_empty() { Bytes::from_static(b"null") } else { body };
        return serde_json::from_slice(&body).context("the API's answer cannot be read");
    }
    bail!("{}", problem(&body))
}

/// What an API refuses, in words.
pub(crate) fn problem(body: &[u8]) -> String {
    let Problem { title, detail, field, faults } = serde_json::from_slice(body).unwrap_or_default();
    let detail = match (detail, field) {
        (Some(detail), _) if faults.is_some() => format!("\n{detail}"),
        (Some(detail), Some(field)) => format!(": {field} must be {detail}"),
        (None, Some(field)) => format!(": {field}"),
        (Some(detail), None) => format!(" ({detail})"),
        (None, None) => String::new(),
    };
    format!("{title}{detail}")
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(stream).await?;
    // It ends with the body.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

/// `$XDG_CONFIG_HOME/switchboard/profiles.toml`, below `~/.config` when that is not set.
fn profiles_path() -> PathBuf {
    let named = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let folder = named("XDG_CONFIG_HOME").or_else(|| named("HOME").map(|home| home.join(".config")));
    folder.unwrap_or_default().join("switchboard").join("profiles.toml")
}

/// The profiles, which have keys in them: for their owner alone.
fn profiles(path: &Path) -> anyhow::Result<BTreeMap<String, Profile>> {
    let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        metadata.permissions().mode() & 0o077 == 0,
        "{} has keys in it, and others may read it: chmod 600 {0}",
        path.display()
    );
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // What toml says of a fault has the line in it, hence perhaps the key.
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(0, |span| text.get(..span.start).unwrap_or_default().lines().count());
        anyhow::anyhow!(
            "{}, line {}: a profile is [NAME] with api = \"URL\" and key = \"swbk_…\"",
            path.display(),
            line.max(1)
        )
    })
}

fn key_for(url: &str) -> anyhow::Result<String> {
    let path = profiles_path();
    let all = if path.exists() { profiles(&path)? } else { BTreeMap::new() };
    let is_meant = |it: &Profile| it.api.trim_end_matches('/') == url.trim_end_matches('/');
    match all.into_values().find(is_meant) {
        Some(Profile { key, .. }) => Ok(key),
        None => bail!("there is no key for {url}: {KEY_VARIABLE} has it, or a profile in {}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    #[test]
    fn profiles_are_for_their_owner_alone_and_no_fault_of_theirs_shows_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profiles.toml");
        let with = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            profiles(&path)
        };
        let text = "[production]\napi = \"https://a\"\nkey = \"swbk_secret\"\n";
        assert_eq!(with(text, 0o600).unwrap()["production"].key, "swbk_secret");
        let refused = with(text, 0o640).err().unwrap().to_string();
        assert!(refused.contains("chmod 600"), "{refused}");
        for wrong in [
            "[production]\nkey = swbk_secret\n",
            "[production]\nkey = \"swbk_secret\"\n",
            "key = \"swbk_secret\"\n",
        ] {
            let refused = format!("{:#}", with(wrong, 0o600).err().unwrap());
            assert!(refused.contains("line") && !refused.contains("secret"), "{refused}");
        }
    }
}
