//! How does a whole system start with one command? NATS as a child, and every service in this process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use boot::config::{Flag, Source};
use boot::{CommonArgs, Context, Health, InForce, Settings, Together};
use bus::{Bus, BusSettings};
use clap::Args;
use switchboard_api::Api;
use switchboard_ingress::Ingress;
use tokio_util::sync::CancellationToken;

use crate::common::output::{note, say};
use crate::common::reach::EXIT_USAGE;
use crate::system::access;
use crate::system::addresses::{AddressFile, Addresses, DeviceAddresses, ServiceAddresses};
use crate::system::data_dir::DataDir;
use crate::system::demo;
use crate::system::guard::Guard;
use crate::system::nats::Nats;
use crate::system::ports;

/// After so long a person is told what is still waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Args)]
#[command(
    args_override_self = true,
    after_help = "\
It stays in the foreground and ends with Ctrl-C, its NATS server last. What is in the data folder is there again at \
the next start. With --nats (or nats.url set elsewhere) it uses that server and starts none.

Examples:
  switchboard up --demo
  switchboard up --ephemeral --mqtt 127.0.0.1:2883 --nats-port 0 --addresses where.json
  switchboard up --mqtt 0.0.0.0:1883 --data /var/lib/switchboard
  switchboard up --nats nats://nats.example:4222"
)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    own: OwnArgs,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Where devices are listened for.
#[derive(Args)]
pub(crate) struct ListenArgs {
    /// Address for devices over MQTT [setting: mqtt.listen; default: 127.0.0.1:1883]
    #[arg(long, value_name = "ADDR")]
    mqtt: Option<String>,
    /// Address for devices over HTTP and WebSocket [setting: http.listen; default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
    /// Address for devices over CoAP [setting: coap.listen; default: 127.0.0.1:5683]
    #[arg(long, value_name = "ADDR")]
    coap: Option<String>,
    /// Address for applications [setting: api.listen; default: 127.0.0.1:8081, of a cluster 127.0.0.1:8181]
    #[arg(long, value_name = "ADDR")]
    api: Option<String>,
}

/// Flags of a system with a NATS server of its own.
#[derive(Args)]
pub(crate) struct OwnArgs {
    /// Load the demo account, whose tokens are public
    #[arg(long)]
    pub(crate) demo: bool,
    /// With --demo, listen beyond this machine all the same: whoever reaches the ports can be any of its devices
    #[arg(long, requires = "demo")]
    pub(crate) demo_on_network: bool,
    /// Keep nothing: the data goes when the system ends
    #[arg(long, conflicts_with = "data")]
    pub(crate) ephemeral: bool,
    /// Folder for the data [default: ~/.local/share/switchboard, or below XDG_DATA_HOME]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Port of our own NATS server, on 127.0.0.1; 0: any that is free
    #[arg(long, value_name = "PORT", default_value_t = 4222)]
    pub(crate) nats_port: u16,
    /// The nats-server program [default: NATS_SERVER, the PATH, .tools]
    #[arg(long, value_name = "FILE")]
    pub(crate) nats_server: Option<PathBuf>,
    /// When everything is ready, write who listens where to this file (JSON); it goes when the system ends
    #[arg(long, value_name = "FILE")]
    pub(crate) addresses: Option<PathBuf>,
}

/// What the flags come to.
pub(crate) struct Asked {
    pub(crate) settings: Settings,
    /// Somebody named a NATS server: none is started.
    pub(crate) uses_other_nats: bool,
    /// Somebody said where the API listens.
    pub(crate) says_where_api: bool,
}

pub(crate) fn run(args: UpArgs) -> ExitCode {
    let Asked { settings, uses_other_nats, .. } = match asked(&args.common, &args.listen, &args.own) {
        Ok(asked) => asked,
        Err(status) => return status,
    };
    let threads = settings.ingress.worker_threads.into();
    super::live(&settings.log.clone(), threads, up(args.own, settings, uses_other_nats))
}

/// The settings in force, or the exit status of one who was told their faults.
pub(crate) fn asked(common: &CommonArgs, listen: &ListenArgs, own: &OwnArgs) -> Result<Asked, ExitCode> {
    let mut sources = common.sources();
    let ListenArgs { mqtt, http, coap, api } = listen;
    let listen = [
        ("--mqtt", "mqtt.listen", mqtt),
        ("--http", "http.listen", http),
        ("--coap", "coap.listen", coap),
        ("--api", "api.listen", api),
    ];
    for (name, setting, value) in listen {
        sources.flags.extend(value.clone().map(|value| Flag { name, setting, value }));
    }
    let loaded = Settings::load(&sources).map_err(|faults| {
        note(format_args!("error: {faults}"));
        ExitCode::from(EXIT_USAGE)
    })?;
    let is_given = |path| *loaded.source(path) != Source::Default;
    let (uses_other_nats, says_what_to_log) = (is_given("nats.url"), is_given("log.level"));
    let says_where_api = is_given("api.listen");
    let credentials = ["nats.user", "nats.store_user", "nats.credentials_file", "nats.tls_ca_file"];
    let credentials = credentials.into_iter().find(|setting| is_given(setting));
    let mut settings = loaded.settings;
    if uses_other_nats {
        access::find_for(&mut settings.nats);
    } else if let Some(given) = credentials {
        note(format_args!(
            "error: {given} is set, and no NATS server is named: our own draws a password at each start and takes no \
             other; --nats URL names the server that {given} is for"
        ));
        return Err(ExitCode::from(EXIT_USAGE));
    }
    if own.demo
        && !own.demo_on_network
        && let Some((setting, address)) = beyond_loopback(&settings)
    {
        note(format_args!(
            "error: the demo account's tokens are public, and {setting} is {address}: whoever reaches it could be \
             any of its devices; --demo-on-network does it all the same"
        ));
        return Err(ExitCode::from(EXIT_USAGE));
    }
    if !says_what_to_log {
        // The lines of this command itself say what goes on.
        settings.log.level = "warn".to_owned();
    }
    Ok(Asked { settings, uses_other_nats, says_where_api })
}

/// A setting by which devices on other machines are let in, and its address.
fn beyond_loopback(settings: &Settings) -> Option<(&'static str, SocketAddr)> {
    let Settings { mqtt, http, coap, .. } = settings;
    let has_tls = settings.tls.certificate_file.is_some();
    let plain = [("mqtt.listen", mqtt.listen), ("http.listen", http.listen), ("coap.listen", coap.listen)];
    let tls = [("mqtt.tls_listen", mqtt.tls_listen), ("http.tls_listen", http.tls_listen)];
    let listened_on = plain.into_iter().chain(tls.into_iter().filter(|_| has_tls));
    listened_on.into_iter().find(|(_, address)| !address.ip().to_canonical().is_loopback())
}

async fn up(own: OwnArgs, mut settings: Settings, uses_other_nats: bool) -> anyhow::Result<()> {
    // Every port first, so that one that is taken shows before anything is begun.
    ports::check(&settings, (!uses_other_nats).then_some(own.nats_port))?;
    let admin = boot::admin::bind(settings.admin.listen).await?;
    let ingress = Ingress::bind(&settings).await?;
    let api = Api::bind(&settings).await?;
    let (shutdown, guard) = signals()?;
    let nats = match uses_other_nats {
        true => None,
        false => Some(start_nats(&own, &mut settings, &guard).await?),
    };

    let metrics = boot::metrics::install("switchboard")?;
    let (traces, exporter) = boot::traces::start(&settings);
    let health = Health::new();
    let settings = Arc::new(settings);
    let base = Context {
        service: "switchboard",
        in_force: InForce::fixed(Arc::clone(&settings)),
        settings,
        shutdown: shutdown.clone(),
        health: health.clone(),
        admin_addr: admin.local_addr(),
        pages: admin.pages(),
        traces,
    };
    let closing = CancellationToken::new();
    let answering_admin = tokio::spawn(admin.serve(health, metrics, closing.clone()));
    let telling = tokio::spawn(boot::log_limit::keep_telling());
    let ended = serve(&own, &base, (ingress, api), nats.as_ref().map(|(nats, data)| (nats, data))).await;
    exporter.close().await;
    telling.abort();
    boot::log_limit::tell();
    closing.cancel();
    let _ = answering_admin.await;
    if let Some((nats, data)) = nats {
        nats.stop().await;
        drop(data);
    }
    if ended.is_ok() {
        say("Switchboard has ended.");
    }
    ended
}

/// What ends this process, and what ends its children when it cannot.
pub(crate) fn signals() -> anyhow::Result<(CancellationToken, Guard)> {
    let guard = Guard::start();
    let at_once = guard.clone();
    let shutdown = boot::shutdown::signals_with(move || at_once.kill_all());
    Ok((shutdown.context("cannot listen for SIGTERM and SIGINT")?, guard))
}

/// Starts our own NATS and points the settings at it.
pub(crate) async fn start_nats(
    own: &OwnArgs,
    settings: &mut Settings,
    guard: &Guard,
) -> anyhow::Result<(Nats, DataDir)> {
    let data = DataDir::open("switchboard", own.data.as_deref(), own.ephemeral)?;
    let nats = Nats::start(own.nats_server.clone(), own.nats_port, &data, guard).await?;
    nats.give_to(&mut settings.nats);
    Ok((nats, data))
}

async fn serve(
    own: &OwnArgs,
    base: &Context,
    (ingress, api): (Ingress, Api),
    nats: Option<(&Nats, &DataDir)>,
) -> anyhow::Result<()> {
    if own.demo && !load_demo(base).await? {
        return Ok(());
    }
    let listens = ServiceAddresses {
        name: "switchboard".to_owned(),
        admin: base.admin_addr,
        devices: Some(DeviceAddresses {
            mqtt: ingress.mqtt_address(),
            http: ingress.http_address(),
            coap: ingress.coap_address(),
            mqtts: ingress.mqtts_address(),
            https: ingress.https_address(),
        }),
        api: Some(api.address()),
    };
    let mut services = start(base, ingress, api).await?;
    let started = tokio::select! {
        () = base.health.wait_ready() => Ok(true),
        () = base.shutdown.cancelled() => Ok(false),
        ended = services.first_end() => ended.map(|()| false),
        () = tell_what_is_waited_for(&base.health) => Ok(false),
    };
    let ended = match started {
        Ok(true) => {
            let addresses = Addresses {
                nats: base.settings.nats.url.clone(),
                nats_password_file: nats.and_then(|(nats, _)| nats.password_file()).map(Path::to_owned),
                pid: std::process::id(),
                services: vec![listens],
            };
            let file = own.addresses.as_deref().map(|path| AddressFile::write(path, &addresses)).transpose();
            match file {
                Ok(file) => {
                    greet(&addresses, own, nats.map(|(_, data)| data));
                    let ended = tokio::select! {
                        () = base.shutdown.cancelled() => Ok(()),
                        ended = services.first_end() => ended,
                    };
                    drop(file);
                    ended
                }
                Err(error) => Err(error),
            }
        }
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    base.health.draining();
    if base.shutdown.is_cancelled() {
        say("Ending: calls in flight may finish first.");
    }
    ended.and(services.stop().await)
}

/// Loads the demo account; false when the process is to end first.
async fn load_demo(base: &Context) -> anyhow::Result<bool> {
    let load = async {
        let settings: BusSettings = (&base.settings.nats).into();
        let bus = Bus::connect(&settings, "up").await?;
        let changed = demo::load(&bus, &base.settings).await.context("the demo account cannot be loaded");
        bus.close().await;
        changed
    };
    let changed = tokio::select! {
        changed = load => changed?,
        () = base.shutdown.cancelled() => return Ok(false),
    };
    if changed > 0 {
        note(format_args!(
            "{changed} parts of the demo account were changed since it was loaded, and are left as they are."
        ));
    }
    Ok(true)
}

/// Starts the services of this process.
async fn start(base: &Context, ingress: Ingress, api: Api) -> anyhow::Result<Together> {
    // One for all: it is what they find each other by.
    let settings: BusSettings = (&base.settings.nats).into();
    let connect =
        async |name| Bus::connect(&settings.of_service(name), name).await.context("there is no NATS");
    let (for_authorizer, for_router) = (connect("authorizer").await?, connect("router").await?);
    let (for_ingress, for_api) = (connect("ingress").await?, connect("api").await?);
    for_ingress.admits_bodies(&base.settings)?;
    let mut services = Together::of(base);
    services.answer("authorizer", |context| switchboard_authorizer::serve(context, for_authorizer));
    services.answer("router", |context| switchboard_router::serve(context, for_router));
    services.ask("ingress", |context| async move {
        let served = ingress.serve(context, for_ingress.clone()).await;
        for_ingress.close().await;
        served
    });
    services.ask("api", |context| api.serve(context, for_api));
    Ok(services)
}

/// Never ends: it only says what a slow start waits for.
async fn tell_what_is_waited_for(health: &Health) {
    let mut told = Vec::new();
    loop {
        tokio::time::sleep(PATIENCE).await;
        let unready = health.unready();
        if unready != told {
            for (part, why) in &unready {
                note(format_args!("still waiting for {part}: {why}"));
            }
            told = unready;
        }
    }
}

fn greet(addresses: &Addresses, own: &OwnArgs, data: Option<&DataDir>) {
    let Some(service) = addresses.services.first() else { return };
    say(format_args!("Switchboard {}", boot::args::version()));
    if let Some(devices) = service.devices {
        say(format_args!("  devices  {devices}"));
    }
    if let Some(api) = service.api {
        say(format_args!("  API      http://{api}/v1/openapi.json"));
    }
    say(format_args!("  admin    http://{}/readyz and /metrics", service.admin));
    say(format_args!("  NATS     {}", addresses.nats_and_password()));
    match data {
        Some(_) if own.ephemeral => say("  data     none is kept"),
        Some(data) => say(format_args!("  data     {}", data.path().display())),
        None => {}
    }
    say("");
    next_steps(addresses, own.demo);
    say("");
    say("Switchboard is ready. Ctrl-C ends it.");
}

/// What to type in a second terminal.
pub(crate) fn next_steps(addresses: &Addresses, has_demo: bool) {
    let us = program();
    let nats = match addresses.nats.as_str() {
        "nats://127.0.0.1:4222" => String::new(),
        url => format!(" --nats {url}"),
    };
    if !has_demo {
        say("Next, in a second terminal:");
        say(format_args!("  {us} tenant add Acme{nats}"));
        say(format_args!("  {us} customer add \"First customer\"{nats}"));
        say(format_args!("  {us} device add \"Pump 1\" --customer \"First customer\"{nats}"));
        return;
    }
    let Some(DeviceAddresses { mqtt, .. }) = addresses.services.iter().find_map(|service| service.devices)
    else {
        return;
    };
    let rpc = "v1/devices/me/rpc";
    let ask = format!(
        "mosquitto_rr -h {} -p {} -u A1_TEST_TOKEN -t {rpc}/request/1 -e {rpc}/response/1",
        mqtt.ip(),
        mqtt.port()
    );
    say("Next, in a second terminal. Test Device A1 asks for the devices of its customer:");
    say(format_args!("  {ask} \\\n    -m '{{\"method\":\"getDevices\",\"params\":{{}}}}'"));
    say("It calls Test Device A2, which is not connected, and reads so:");
    say(format_args!(
        "  {ask} \\\n    -m '{{\"method\":\"sendMsg\",\"params\":{{\
         \"deviceId\":\"aa435e80-9fce-11e6-8080-808080808080\",\"timeout\":2000,\"body\":{{\"param1\":\"value1\"}}}}}}'"
    ));
    say("The same without a client, and all devices (tokens are A1_TEST_TOKEN, A2_TEST_TOKEN, …):");
    say(format_args!("  {us} call --from A1 --to A2 '{{\"param1\":\"value1\"}}'{nats}"));
    say(format_args!("  {us} device list{nats}"));
}

/// How this program is called from a terminal like ours.
fn program() -> String {
    let name = "switchboard";
    let Ok(this) = std::env::current_exe() else {
        return name.to_owned();
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    if on_path.and_then(|file| file.canonicalize().ok()) == this.canonicalize().ok() {
        return name.to_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    match this.strip_prefix(&here) {
        Ok(below) => format!("./{}", below.display()),
        Err(_) => this.display().to_string(),
    }
}
