//! What does it look like to be called? `switchboard device listen` and `device emulate` are a device: they wait for
//! calls, show each, and the second answers.

use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use switchboard_ingress::coap::codec::Code;
use tokio::io::{AsyncWriteExt, split};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::common::coap::Coap;
use crate::common::output::{note, say};
use crate::common::reach::{ReachArgs, usage};
use crate::common::via::{self, Via};
use crate::common::way::{Way, WayArgs};

/// A poll over HTTP that waits for longer meets more middlemen that lose patience.
const POLL_MS: u32 = 20_000;
/// Between two of MQTT's pings.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long a node may take to take an answer over CoAP.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Until a node that was not reached is tried again.
const RETRY: Duration = Duration::from_secs(1);

const REQUEST_TOPIC: &str = "v1/devices/me/rpc/request/";
const RESPONSE_TOPIC: &str = "v1/devices/me/rpc/response/";

#[derive(Args)]
#[command(after_help = "\
Each call is a line of JSON: id, method and params. It waits until Ctrl-C, or until --count calls have come, and tries \
again when a node is not reached, as a device does.

Examples:
  switchboard device listen --token A2_TEST_TOKEN --via mqtt
  switchboard device listen --token A2_TEST_TOKEN --via coap --count 1 | jq .params")]
pub(crate) struct ListenArgs {
    /// Its access token
    #[arg(long, env = "SWITCHBOARD_DEVICE_TOKEN", hide_env_values = true)]
    token: String,
    /// Over which protocol
    #[arg(long, value_name = "PROTOCOL", value_enum, default_value_t = Via::Http)]
    via: Via,
    #[command(flatten)]
    way: WayArgs,
    /// End after so many calls
    #[arg(long, value_name = "CALLS")]
    count: Option<u64>,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Args)]
#[command(after_help = "\
Each call is a line of JSON: id, method and params. It waits until Ctrl-C, or until --count calls were answered, and \
tries again when a node is not reached, as a device does.

A command of --exec gets the params on its standard input and the method as SWITCHBOARD_METHOD; the JSON that it \
prints is the answer.

Examples:
  switchboard device emulate --token A2_TEST_TOKEN
  switchboard device emulate --token A2_TEST_TOKEN --via mqtt --reply '{\"temperature\":21}'
  switchboard device emulate --token A2_TEST_TOKEN --via coap --at node.example:5683
  switchboard device emulate --token A2_TEST_TOKEN --exec 'jq .x+1'")]
pub(crate) struct EmulateArgs {
    /// What it answers, any JSON
    #[arg(long, value_name = "JSON", default_value = "{\"status\":\"ok\"}")]
    reply: Box<str>,
    /// A command for the shell that makes the answer
    #[arg(long, value_name = "COMMAND", conflicts_with = "reply")]
    exec: Option<String>,
    #[command(flatten)]
    listen: ListenArgs,
}

/// What a called device reads.
#[derive(Debug, Serialize, Deserialize)]
struct Call {
    id: u64,
    method: String,
    #[serde(default)]
    params: Option<Box<RawValue>>,
}

/// How it answers.
enum Answering {
    Never,
    With(String),
    By(String),
}

struct Device {
    token: String,
    answering: Answering,
    left: Option<u64>,
}

pub(crate) async fn listen(args: ListenArgs) -> anyhow::Result<ExitCode> {
    wait(args, Answering::Never).await
}

pub(crate) async fn emulate(args: EmulateArgs) -> anyhow::Result<ExitCode> {
    let answering = match args.exec {
        Some(command) => Answering::By(command),
        None => {
            serde_json::from_str::<serde::de::IgnoredAny>(&args.reply)
                .map_err(|error| usage(format!("--reply must be JSON: {error}")))?;
            Answering::With(args.reply.into())
        }
    };
    wait(args.listen, answering).await
}

async fn wait(args: ListenArgs, answering: Answering) -> anyhow::Result<ExitCode> {
    let way = args.way.way(args.via, &args.reach.settings()?)?;
    let mut device = Device { token: args.token, answering, left: args.count };
    let stop = boot::shutdown::signals()?;
    note(format_args!("Waiting for calls at {way}; Ctrl-C ends it."));
    device.serve(args.via, &way, &stop).await?;
    Ok(ExitCode::SUCCESS)
}

impl Device {
    /// Is that device until its calls have come, or it is stopped.
    async fn serve(&mut self, via: Via, way: &Way, stop: &CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            let ended = match via {
                Via::Http => stop.run_until_cancelled(self.poll(way)).await.unwrap_or(Ok(())),
                Via::Mqtt => stop.run_until_cancelled(self.subscribe(way)).await.unwrap_or(Ok(())),
                Via::Coap => self.observe(way, stop).await,
            };
            match ended {
                Ok(()) => return Ok(()),
                Err(error) if error.is::<via::Refused>() => return Err(error),
                Err(error) => note(format_args!("{error:#}; trying again")),
            }
            stop.run_until_cancelled(sleep(RETRY)).await;
        }
        Ok(())
    }

    async fn poll(&mut self, way: &Way) -> anyhow::Result<()> {
        let path = format!("/api/v1/{}/rpc", via::path_segment(&self.token));
        while self.left != Some(0) {
            let (status, body) = via::exchange(way, "GET", &format!("{path}?timeout={POLL_MS}"), "").await?;
            match status {
                200 => {}
                408 => continue,
                401 => return Err(via::Refused.into()),
                status => bail!("the node answers with status {status}"),
            }
            let call: Call = serde_json::from_slice(&body).context("the call cannot be read")?;
            let Some(answer) = self.answer(&call).await? else { continue };
            let (status, _) = via::exchange(way, "POST", &format!("{path}/{}", call.id), &answer).await?;
            if status != 200 {
                note(format_args!("the answer was not taken: status {status}"));
            }
        }
        Ok(())
    }

    async fn subscribe(&mut self, way: &Way) -> anyhow::Result<()> {
        let stream = via::mqtt_connected(way, &self.token).await?;
        let (mut reader, writer) = split(stream);
        let writer = Mutex::new(writer);
        let send = async |packet: Vec<u8>| writer.lock().await.write_all(&packet).await;
        let filter = via::text(&format!("{REQUEST_TOPIC}+"))?;
        send(via::packet(0x82, &[&[0, 1][..], &filter, &[0]].concat())).await?;
        let pings = async {
            loop {
                sleep(PING_EVERY).await;
                send(via::packet(0xc0, &[])).await?;
            }
        };
        let calls = async {
            while self.left != Some(0) {
                let (kind, body) = via::read_packet(&mut reader).await?;
                if kind >> 4 != 3 {
                    continue;
                }
                let call = published(&body).context("the call cannot be read")?;
                let Some(answer) = self.answer(&call).await? else { continue };
                let topic = via::text(&format!("{RESPONSE_TOPIC}{}", call.id))?;
                send(via::packet(0x30, &[&topic, answer.as_bytes()].concat())).await?;
            }
            // Goodbye, behind what was sent before it.
            send(via::packet(0xe0, &[])).await?;
            Ok(())
        };
        tokio::select! {
            ended = pings => ended,
            ended = calls => ended,
        }
    }

    async fn observe(&mut self, way: &Way, stop: &CancellationToken) -> anyhow::Result<()> {
        let token = self.token.clone();
        let mut node = Coap::at(way.address().await?).await?;
        let notified = self.notified(&mut node, ["api", "v1", &token, "rpc"]);
        let ended = stop.run_until_cancelled(notified).await.unwrap_or(Ok(()));
        ended?;
        // The end of its socket would tell the node nothing.
        if let Err(error) = node.leave(&["api", "v1", &token, "rpc"]).await {
            note(format_args!("the node was not told that it is over: {error:#}"));
        }
        Ok(())
    }

    async fn notified(&mut self, node: &mut Coap, rpc: [&str; 4]) -> anyhow::Result<()> {
        while self.left != Some(0) {
            let call = match node.notified(&rpc).await? {
                (Code::CONTENT, call) => call,
                (Code::UNAUTHORIZED, _) => return Err(via::Refused.into()),
                (code, _) => bail!("the node ended the observation with {code}"),
            };
            let call: Call = serde_json::from_slice(&call).context("the call cannot be read")?;
            let answer = tokio::select! {
                answer = self.answer(&call) => answer?,
                ended = node.keep(&rpc) => match ended? {},
            };
            let Some(answer) = answer else { continue };
            let [api, v1, token, rpc] = rpc;
            let id = call.id.to_string();
            let path = [api, v1, token, rpc, &id];
            let answered = node.ask(Code::POST, &path, answer.as_bytes());
            let (code, _) = timeout(ANSWER_WAIT, answered).await.context("nobody takes the answer")??;
            if code != Code::CHANGED {
                note(format_args!("the answer was not taken: {code}"));
            }
        }
        Ok(())
    }

    /// Shows a call, and makes its answer.
    async fn answer(&mut self, call: &Call) -> anyhow::Result<Option<String>> {
        say(serde_json::to_string(call)?);
        self.left = self.left.map(|left| left - 1);
        Ok(match &self.answering {
            Answering::Never => None,
            Answering::With(reply) => Some(reply.clone()),
            Answering::By(command) => Some(match made(command, call).await {
                Ok(answer) => answer,
                Err(error) => {
                    note(format_args!("{command}: {error:#}"));
                    "{\"error\":\"the command that answers has failed\"}".to_owned()
                }
            }),
        })
    }
}

/// A call out of a PUBLISH of QoS 0: its id stands in the topic.
fn published(body: &[u8]) -> anyhow::Result<Call> {
    #[derive(Deserialize)]
    struct Request {
        method: String,
        #[serde(default)]
        params: Option<Box<RawValue>>,
    }
    let (length, rest) = body.split_first_chunk::<2>().context("it is too short")?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (topic, payload) = rest.split_at_checked(length).context("it is too short")?;
    let id = std::str::from_utf8(topic)?.strip_prefix(REQUEST_TOPIC).context("it is on another topic")?;
    let Request { method, params } = serde_json::from_slice(payload)?;
    Ok(Call { id: id.parse()?, method, params })
}

async fn made(command: &str, call: &Call) -> anyhow::Result<String> {
    let mut child = Command::new("sh");
    child.args(["-c", command]).env("SWITCHBOARD_METHOD", &call.method).kill_on_drop(true);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // A command that does not read is none the worse for it.
        let _ = input.write_all(call.params.as_ref().map_or("null", |params| params.get()).as_bytes()).await;
    }
    let ended = child.wait_with_output().await?;
    ensure!(ended.status.success(), "it ended with {}", ended.status);
    let answer = String::from_utf8(ended.stdout).context("it printed no text")?;
    serde_json::from_str::<serde::de::IgnoredAny>(&answer).context("it printed no JSON")?;
    Ok(answer.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_read_out_of_its_publish() {
        let publish = |topic: &str, body: &str| [&via::text(topic).unwrap()[..], body.as_bytes()].concat();
        let call =
            published(&publish("v1/devices/me/rpc/request/7", r#"{"method":"onMsg","params":{"x": 1}}"#));
        let shown = serde_json::to_string(&call.unwrap()).unwrap();
        assert_eq!(shown, r#"{"id":7,"method":"onMsg","params":{"x": 1}}"#);
        for (topic, body) in
            [("v1/devices/me/rpc/request/x", "{}"), ("other", "{}"), ("v1/devices/me/rpc/request/7", "")]
        {
            assert!(published(&publish(topic, body)).is_err(), "{topic} {body}");
        }
        assert!(published(&[0, 9, b'v']).is_err());
    }
}
