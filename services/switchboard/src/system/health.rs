//! Is a service ready? `switchboard health`, for images that hold nothing else to ask with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::common::output::say;
use crate::common::reach::ReachArgs;

/// The longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

#[derive(Args)]
#[command(after_help = "\
The exit status is 0 when the service is ready, and 1 when it is not, or nobody answers.

Examples:
  switchboard health                                  as SWITCHBOARD_ADMIN__LISTEN says, on this machine
  switchboard health http://router-1:9100/readyz
  switchboard health http://127.0.0.1:9100/livez")]
pub(crate) struct HealthArgs {
    /// What to ask [default: /readyz where admin.listen says]
    #[arg(value_name = "URL", value_parser = parse)]
    url: Option<Asked>,
    /// How long the answer may take
    #[arg(long, value_name = "MS", default_value_t = 3_000)]
    timeout_ms: u64,
    #[command(flatten)]
    reach: ReachArgs,
}

/// `http://authority/path`
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) authority: String,
    pub(super) path: String,
}

pub(crate) async fn run(args: HealthArgs) -> anyhow::Result<ExitCode> {
    let asked = match args.url {
        Some(asked) => asked,
        None => {
            let mut listens = args.reach.settings()?.admin.listen;
            match listens.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => listens.set_ip(Ipv4Addr::LOCALHOST.into()),
                IpAddr::V6(ip) if ip.is_unspecified() => listens.set_ip(Ipv6Addr::LOCALHOST.into()),
                _ => {}
            }
            Asked { authority: listens.to_string(), path: "/readyz".to_owned() }
        }
    };
    let answer = timeout(Duration::from_millis(args.timeout_ms), get(&asked)).await;
    let cannot = || format!("no answer from http://{}{}", asked.authority, asked.path);
    let answer = answer.with_context(cannot)?.with_context(cannot)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    say(body.trim_end());
    match head.split(' ').nth(1) {
        Some("200") => Ok(ExitCode::SUCCESS),
        Some(_) => Ok(ExitCode::FAILURE),
        None => bail!("the answer is not HTTP"),
    }
}

/// Head and body. Asked in HTTP/1.0, in which nobody answers in chunks.
pub(super) async fn get(Asked { authority, path }: &Asked) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(authority).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut answer).await?;
    Ok(answer)
}

pub(super) fn parse(url: &str) -> Result<Asked, String> {
    let expected = "http://HOST:PORT, or with a path, as http://127.0.0.1:9100/livez";
    let rest = url.strip_prefix("http://").ok_or(expected)?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, "readyz"));
    let (host, port) = authority.rsplit_once(':').ok_or(expected)?;
    if host.is_empty() || port.parse::<u16>().is_err() || path.chars().any(|it| !it.is_ascii_graphic()) {
        return Err(expected.to_owned());
    }
    Ok(Asked { authority: authority.to_owned(), path: format!("/{path}") })
}
