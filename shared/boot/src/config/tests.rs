use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;

/// A file that is gone with the test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(text: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("switchboard-{}-{}.toml", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn load(file: &str, env: &[(&str, &str)], overrides: &[&str]) -> Result<Loaded, Faults> {
    let file = TempFile::new(file);
    Settings::load(&Sources {
        file: Some(file.0.clone()),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        overrides: overrides.iter().map(|given| (*given).to_owned()).collect(),
        flags: Vec::new(),
    })
}

/// The faults as a person reads them, the file's name left out.
fn faults(file: &str, env: &[(&str, &str)], overrides: &[&str]) -> Vec<String> {
    let Err(Faults(faults)) = load(file, env, overrides) else { return Vec::new() };
    let text = |fault: &Fault| match &fault.source {
        Source::File { path, .. } => fault.to_string().replace(&path.display().to_string(), "file"),
        _ => fault.to_string(),
    };
    faults.iter().map(text).collect()
}

fn sample_uncommented() -> String {
    let is_setting =
        |line: &str| line.strip_prefix('#').is_some_and(|rest| rest.starts_with(char::is_alphabetic));
    sample().lines().map(|line| if is_setting(line) { &line[1..] } else { line }.to_owned() + "\n").collect()
}

#[test]
fn defaults_are_valid() {
    let loaded = Settings::load(&Sources::default()).unwrap();
    assert_eq!(loaded.settings, Settings::default());
    assert_eq!(load(&sample_uncommented(), &[], &[]).unwrap().settings, Settings::default());
}

#[test]
fn the_sample_is_this_declaration() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/switchboard.toml");
    if std::env::var_os("UPDATE_SAMPLE").is_some() {
        std::fs::write(&path, sample()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(written, sample(), "run this test with UPDATE_SAMPLE=1 to write it anew");
    assert_eq!(load(&written, &[], &[]).unwrap().settings, Settings::default());
    for path in Settings::PATHS {
        let (_, name) = path.split_once('.').unwrap();
        assert!(written.contains(&format!("\n#{name} = ")), "{path} is not in the sample");
        assert!(reference().contains(&format!("| `{path}` | ")), "{path} is not in the reference");
    }
}

#[test]
fn no_two_settings_share_a_name_in_the_environment() {
    let names: BTreeSet<_> = env_names().collect();
    assert_eq!(names.len(), Settings::PATHS.len());
    assert_eq!(env_name("mqtt.max_packet_bytes"), "SWITCHBOARD_MQTT__MAX_PACKET_BYTES");
}

#[test]
fn the_stronger_source_counts() {
    const FILE: &str = "[mqtt]\nreceive_maximum = 1\nmax_subscriptions = 1\ntopic_alias_maximum = 1\n";
    let env = [("SWITCHBOARD_MQTT__MAX_SUBSCRIPTIONS", "2"), ("SWITCHBOARD_MQTT__TOPIC_ALIAS_MAXIMUM", "2")];
    let loaded = load(FILE, &env, &["mqtt.topic_alias_maximum=3", "mqtt.topic_alias_maximum=4"]).unwrap();
    let mqtt = &loaded.settings.mqtt;
    assert_eq!((mqtt.receive_maximum, mqtt.max_subscriptions, mqtt.topic_alias_maximum), (1, 2, 4));
    assert!(matches!(loaded.source("mqtt.receive_maximum"), Source::File { line: 2, .. }));
    assert_eq!(
        loaded.source("mqtt.max_subscriptions").to_string(),
        "environment SWITCHBOARD_MQTT__MAX_SUBSCRIPTIONS"
    );
    assert_eq!(loaded.source("mqtt.topic_alias_maximum").to_string(), "flag --set mqtt.topic_alias_maximum");
    assert_eq!(*loaded.source("mqtt.listen"), Source::Default);

    let flags = vec![Flag { name: "--nats", setting: "nats.url", value: "nats://a:1".to_owned() }];
    let sources = Sources { overrides: vec!["nats.url=nats://b:2".to_owned()], flags, ..Sources::default() };
    let loaded = Settings::load(&sources).unwrap();
    assert_eq!(loaded.settings.nats.url, "nats://a:1", "a flag with a name of its own is the strongest");
    assert_eq!(loaded.source("nats.url").to_string(), "flag --nats");
}

#[test]
fn every_spelling_of_toml_is_read() {
    let text = "mqtt.listen = '[::1]:0'\nmqtt.receive_maximum = 0x1_0\n\
                ingress = { drain_ms = 1_500 }\n[log]\nformat = \"json\"\n[nats]\nuser = \"\"\n";
    let Settings { mqtt, ingress, log, nats, .. } = load(text, &[], &[]).unwrap().settings;
    assert_eq!((mqtt.listen, mqtt.receive_maximum), ("[::1]:0".parse().unwrap(), 16));
    assert_eq!((ingress.drain_ms, log.format, nats.user), (1_500, LogFormat::Json, None));
}

#[test]
fn each_fault_says_where_what_and_what_instead() {
    let cases: &[(&str, &str)] = &[
        ("[mqtt]\nlissten = 1", "file:2: mqtt.lissten: no such setting; did you mean mqtt.listen?"),
        ("[ingress]\ndrain = 1", "file:2: ingress.drain: no such setting; did you mean ingress.drain_ms?"),
        (
            "[ingress]\nlisten = 1",
            "file:2: ingress.listen: no such setting; did you mean admin.listen or api.listen?",
        ),
        ("[ingress]\ncolour = 1", "file:2: ingress.colour: no such setting"),
        ("[mqqt]\nx = 1", "file:1: mqqt: no such section; did you mean mqtt?"),
        (
            "conceal_foreign_devices = true",
            "file:1: conceal_foreign_devices: no such section; did you mean device_api.conceal_foreign_devices?",
        ),
        ("mqtt = 3", "file:1: mqtt: expected a section, as [mqtt]"),
        ("[[mqtt]]", "file:1: mqtt: expected a section, as [mqtt]"),
        (
            "[mqtt]\nlisten = 1883",
            "file:2: mqtt.listen = 1883: expected an IP address and a port, as 127.0.0.1:1883 or [::1]:1883",
        ),
        (
            "[mqtt]\n\n  listen = \"localhost:1\"",
            "file:3: mqtt.listen = \"localhost:1\": expected an IP address and a port, as 127.0.0.1:1883 or [::1]:1883",
        ),
        ("[nats]\nreplicas = 6", "file:2: nats.replicas = 6: expected a whole number, 1 to 5"),
        ("[nats]\nreplicas = -1", "file:2: nats.replicas = -1: expected a whole number, 1 to 5"),
        (
            "[nats]\nreplicas = 99999999999999999999",
            "file:2: nats.replicas = 99999999999999999999: expected a whole number, 1 to 5",
        ),
        ("[nats]\nreplicas = 1.0", "file:2: nats.replicas = 1.0: expected a whole number, 1 to 5"),
        ("[nats]\nreplicas = \"1\"", "file:2: nats.replicas = \"1\": expected a whole number, 1 to 5"),
        (
            "[nats]\nprefix = \"a.b\"",
            "file:2: nats.prefix = \"a.b\": expected 1 to 32 of the characters A-Z, a-z, 0-9, - and _",
        ),
        (
            "[nats]\nprefix = [1,\n2]",
            "file:2: nats.prefix = [1, 2]: expected 1 to 32 of the characters A-Z, a-z, 0-9, - and _",
        ),
        (
            "[device_api]\nconceal_foreign_devices = 1",
            "file:2: device_api.conceal_foreign_devices = 1: expected true or false",
        ),
        ("[log]\nformat = \"yaml\"", "file:2: log.format = \"yaml\": expected auto, pretty or json"),
        (
            "[nats]\nuser = \"a\\u0000b\"\npassword = \"x\"",
            "file:2: nats.user = \"a\\u0000b\": expected text without control characters; empty: none",
        ),
        (
            "[device_api]\nmax_timeout_ms = 10000",
            "file:2: device_api.max_timeout_ms = 10000: expected at least \
             device_api.default_timeout_ms, which is 20000 (default)",
        ),
        (
            "[device_api]\ndefault_connect_timeout_ms = 90000",
            "file:2: device_api.default_connect_timeout_ms = 90000: expected at most \
             device_api.max_timeout_ms, which is 60000 (default)",
        ),
        ("[nats]\nuser = \"u\"", "file:2: nats.user: needs nats.password or nats.password_file beside it"),
    ];
    for (file, fault) in cases {
        assert_eq!(faults(file, &[], &[]), [*fault], "of {file}");
    }
    assert!(faults("[mqtt\nlisten = 1", &[], &[])[0].starts_with("file:1: not TOML: "));
    assert!(faults("[mqtt]\n[mqtt]", &[], &[])[0].starts_with("file:2: not TOML: duplicate key"));
}

#[test]
fn faults_of_environment_and_flags() {
    let cases: &[(&str, &str, &str)] = &[
        (
            "SWITCHBOARD_MQTT__LISTEN",
            "x",
            "environment SWITCHBOARD_MQTT__LISTEN: mqtt.listen = \"x\": expected an IP address and a port, as \
             127.0.0.1:1883 or [::1]:1883",
        ),
        (
            "SWITCHBOARD_MQTT__LISSTEN",
            "x",
            "environment SWITCHBOARD_MQTT__LISSTEN: no such setting; did you mean SWITCHBOARD_MQTT__LISTEN?",
        ),
        (
            "SWITCHBOARD_MQTT_LISTEN",
            "x",
            "environment SWITCHBOARD_MQTT_LISTEN: no such setting; did you mean SWITCHBOARD_MQTT__LISTEN?",
        ),
        ("SWITCHBOARD_FOO__BAR", "x", "environment SWITCHBOARD_FOO__BAR: no such setting"),
        (
            "SWITCHBOARD_INGRESS__DRAIN_MS",
            "",
            "environment SWITCHBOARD_INGRESS__DRAIN_MS: ingress.drain_ms = \"\": expected a whole number, 0 to 600000",
        ),
        (
            "SWITCHBOARD_INGRESS__DRAIN_MS",
            "+5 s",
            "environment SWITCHBOARD_INGRESS__DRAIN_MS: ingress.drain_ms = \"+5 s\": expected a whole number, 0 to \
             600000",
        ),
        (
            "SWITCHBOARD_INGRESS__DRAIN_MS",
            "_1",
            "environment SWITCHBOARD_INGRESS__DRAIN_MS: ingress.drain_ms = \"_1\": expected a whole number, 0 to \
             600000",
        ),
    ];
    for (name, value, fault) in cases {
        assert_eq!(faults("", &[(name, value)], &[]), [*fault]);
    }
    // What Kubernetes sets beside a service named `switchboard`, the variable of `--config`, and strangers.
    let strange = [
        ("SWITCHBOARD_PORT_1883_TCP_ADDR", "10.0.0.1"),
        ("SWITCHBOARD_SERVICE_HOST", "10.0.0.1"),
        ("SWITCHBOARD_CONFIG", "x.toml"),
        ("MQTT__LISTEN", "x"),
    ];
    assert_eq!(faults("", &strange, &[]), Vec::<String>::new());

    assert_eq!(
        faults("", &[], &["mqtt.listen"]),
        ["flag --set: mqtt.listen: expected KEY=VALUE, as mqtt.listen=127.0.0.1:1884"]
    );
    assert_eq!(
        faults("", &[], &["mqtt.listn=1"]),
        ["flag --set: mqtt.listn: no such setting; did you mean mqtt.listen?"]
    );
    assert_eq!(
        faults("", &[], &["nats.replicas=9"]),
        ["flag --set nats.replicas: nats.replicas = \"9\": expected a whole number, 1 to 5"]
    );
}

#[test]
fn all_faults_come_together() {
    let file = "[nats]\nreplicas = 0\nurll = 1\n[mqtt]\nlisten = true\n";
    let env = [("SWITCHBOARD_LOG__LEVEL", "inof"), ("SWITCHBOARD_LOG__FORMAT", "xml")];
    let error = load(file, &env, &["router.drain_ms=soon", "mqtt.listen=127.0.0.1:1"]).unwrap_err();
    let settings: Vec<_> = error.0.iter().map(|fault| fault.setting.as_str()).collect();
    let expected =
        ["nats.replicas", "nats.urll", "mqtt.listen", "log.format", "log.level", "router.drain_ms"];
    assert_eq!(settings, expected, "by source, then line; what a flag overrides is reported all the same");
    assert!(error.to_string().starts_with("the configuration has 6 faults:\n  "));
}

#[test]
fn a_missing_file_is_one_fault() {
    let file = Some("/nonexistent/switchboard.toml".into());
    let error = Settings::load(&Sources { file, ..Sources::default() }).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("/nonexistent/switchboard.toml: cannot be read: No such file"), "{text}");
}

#[test]
fn secrets_are_never_shown() {
    const PASSWORD: &str = "hunter2";
    let env = [("SWITCHBOARD_NATS__PASSWORD", PASSWORD), ("SWITCHBOARD_NATS__USER", "u")];
    let loaded = load("", &env, &[]).unwrap();
    assert_eq!(loaded.settings.nats.password.as_ref().map(Secret::expose), Some(PASSWORD));
    let printed = print(&loaded);
    assert!(
        printed.contains("password = \"(set)\"  # environment SWITCHBOARD_NATS__PASSWORD\n"),
        "{printed}"
    );
    for shown in [printed.clone(), format!("{loaded:?}"), format!("{:#?}", loaded.settings)] {
        assert!(!shown.contains(PASSWORD), "{shown}");
    }
    assert!(!faults(&printed, &[], &[]).is_empty(), "what is shown in a secret's place is no secret");

    let with_secret_in: &[(&str, &[&str])] = &[
        ("[nats]\nuser = \"u\"\npassword = [\"hunter2\"]", &[]),
        ("[nats]\npasword = \"hunter2\"", &[]),
        ("[nats]\nurl = \"nats://u:hunter2@localhost\"", &[]),
        ("[nats]\npassword = \"hunter2", &[]),
        ("", &["nats.password=hunter2\n"]),
        ("", &["nats.pasword=hunter2"]),
        ("", &["nats.url=nats://hunter2@localhost"]),
    ];
    for (file, overrides) in with_secret_in {
        let shown = faults(file, &[], overrides);
        assert!(!shown.is_empty() && !shown.join("\n").contains(PASSWORD), "{shown:?}");
    }
}

#[test]
fn what_is_empty_takes_back() {
    let file = "[nats]\nuser = \"u\"\npassword = \"p\"\ncredentials_file = \"c\"\n";
    assert_eq!(
        faults(file, &[], &[]),
        ["file:4: nats.credentials_file: stands in for nats.user and nats.password: set one or the other"]
    );
    let nats = load(file, &[("SWITCHBOARD_NATS__CREDENTIALS_FILE", "")], &[]).unwrap().settings.nats;
    assert_eq!((nats.user.as_deref(), nats.credentials_file), (Some("u"), None));
}

#[test]
fn servers_filters_endpoints_and_origins() {
    let valid =
        ["nats://127.0.0.1:4222", "a:1, tls://b.example:2/", "localhost", "nats://[::1]:4222", "ws://[::1]"];
    for url in valid {
        let nats = load("", &[], &[&format!("nats.url={url}")]).unwrap().settings.nats;
        assert_eq!(nats.servers().count(), url.split(',').count());
    }
    for url in [
        "",
        "nats://",
        "http://a",
        "nats://a:0",
        "nats://a:x",
        "a,,b",
        "nats://a b",
        "nats://::1:4222",
        "a:1:2",
    ] {
        assert_eq!(faults("", &[], &[&format!("nats.url={url}")]).len(), 1, "{url:?}");
    }
    for level in
        ["info", "WARN", "off", "info,async_nats=warn", "switchboard_router=trace,warn", "info,[call]=debug"]
    {
        assert_eq!(faults("", &[], &[&format!("log.level={level}")]), Vec::<String>::new());
    }
    for level in ["", "inof", "loud", "info,", "async_nats", "a=b", "info,[call"] {
        assert_eq!(faults("", &[], &[&format!("log.level={level}")]).len(), 1, "{level:?}");
    }
    for endpoint in ["", "http://127.0.0.1:4318", "http://[::1]:4318/", "http://collector/behind/a/path"] {
        let endpoint = format!("traces.endpoint={endpoint}");
        assert_eq!(faults("", &[], &[&endpoint]), Vec::<String>::new());
    }
    for endpoint in ["https://a:4318", "a:4318", "/v1/traces", "http://", "http://u:p@a", "http://a/?b=c"] {
        let endpoint = format!("traces.endpoint={endpoint}");
        assert_eq!(faults("", &[], &[&endpoint]).len(), 1, "{endpoint}");
    }
    for origins in
        ["", "*", "https://app.example", "http://localhost:3000, capacitor://localhost,https://[::1]:8443"]
    {
        assert_eq!(faults("", &[], &[&format!("http.cors_origins={origins}")]), Vec::<String>::new());
    }
    for origins in [
        "app.example",
        "https://",
        "https://a/",
        "https://A.example",
        "https://u@a",
        "*,https://a",
        "https://a,",
    ] {
        assert_eq!(faults("", &[], &[&format!("http.cors_origins={origins}")]).len(), 1, "{origins}");
    }
}

/// Any settings that are valid together, secrets aside.
fn overrides() -> impl Strategy<Value = BTreeMap<&'static str, String>> {
    let text = "[^\\p{C}]{0,20}";
    let changes = (
        ("[A-Za-z0-9_-]{1,32}", text, 1..=5_u32, any::<bool>(), any::<std::net::SocketAddr>()),
        (1..=20_000_u32, 20_000..=3_600_000_u32, 65_536..=1_048_576_u32, any::<u16>()),
        prop::sample::select(vec!["auto", "pretty", "json"]),
        prop::sample::select(vec!["off", "trace", "info,a=warn"]),
    );
    changes.prop_map(
        |((prefix, path, replicas, conceal, listen), (timeout, max, packet, port), format, level)| {
            BTreeMap::from([
                ("nats.prefix", prefix),
                ("nats.credentials_file", path),
                ("nats.url", format!("nats://localhost:{},b", port.max(1))),
                ("nats.replicas", replicas.to_string()),
                ("device_api.conceal_foreign_devices", conceal.to_string()),
                ("device_api.default_timeout_ms", timeout.to_string()),
                ("device_api.max_timeout_ms", max.to_string()),
                ("mqtt.listen", listen.to_string()),
                ("mqtt.max_packet_bytes", packet.to_string()),
                ("log.format", format.to_owned()),
                ("log.level", level.to_owned()),
            ])
        },
    )
}

proptest! {
    #[test]
    fn what_is_printed_reads_the_same(overrides in overrides(), all in any::<bool>()) {
        let given = overrides.iter().filter(|(key, _)| all || key.len() % 2 == 0 || key.ends_with("timeout_ms"));
        let overrides = given.map(|(key, value)| format!("{key}={value}")).collect();
        let loaded = Settings::load(&Sources { overrides, ..Sources::default() }).unwrap();
        let printed = print(&loaded);
        let again = load(&printed, &[], &[]);
        prop_assert_eq!(again.unwrap().settings, loaded.settings, "{}", printed);
    }

    #[test]
    fn no_file_is_a_panic(text in "(\\PC|[\\[\\]=\"'\n.{},#]|mqtt|listen|\\[nats\\]\n){0,40}") {
        let _ = load(&text, &[], &[]);
    }
}
