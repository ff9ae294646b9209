//! Does the command do what it says, as a real process with a real nats-server?

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking; clippy knows only those who bear the attribute, not their helpers"
)]

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

fn switchboard(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
    // What the tester has set must not reach what is tested.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SWITCHBOARD_") {
            command.env_remove(name);
        }
    }
    if let Some(nats_server) = bus::server::find_binary() {
        command.env("NATS_SERVER", nats_server);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

fn wait_for<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = seen() {
            return seen;
        }
        assert!(Instant::now() < give_up, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A system in a folder of its own.
struct Up {
    child: Child,
    folder: TempDir,
    addresses: Value,
}

impl Up {
    fn start(arguments: &[&str]) -> Up {
        Up::start_in(tempfile::tempdir().unwrap(), arguments)
    }

    fn start_in(folder: TempDir, arguments: &[&str]) -> Up {
        let file = folder.path().join("addresses.json");
        let _ = std::fs::remove_file(&file);
        let child = Up::command(folder.path(), &file, arguments).spawn().unwrap();
        let mut up = Up { child, folder, addresses: Value::Null };
        up.addresses = wait_for("the addresses", || {
            if let Some(status) = up.child.try_wait().unwrap() {
                panic!("it ended with {status}:\n{}", up.said());
            }
            serde_json::from_slice(&std::fs::read(&file).ok()?).ok()
        });
        up
    }

    fn command(folder: &Path, addresses: &Path, arguments: &[&str]) -> Command {
        let mut command = switchboard(&["up", "--nats-port", "0"]);
        let log = |name| std::fs::File::create(folder.join(name)).unwrap();
        for listens in ["--mqtt", "--http", "--coap", "--api", "--admin"] {
            command.args([listens, "127.0.0.1:0"]);
        }
        command.arg("--addresses").arg(addresses).args(arguments);
        command.current_dir(folder).stdout(log("out")).stderr(log("err"));
        command
    }

    fn said(&self) -> String {
        ["out", "err"].map(|name| std::fs::read_to_string(self.folder.path().join(name)).unwrap()).concat()
    }

    fn nats(&self) -> &str {
        self.addresses["nats"].as_str().unwrap()
    }

    /// Runs a command against this system.
    fn run(&self, arguments: &[&str]) -> Output {
        switchboard(arguments).args(["--nats", self.nats()]).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        path
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        wait_for("its end", || self.child.try_wait().unwrap())
    }

    fn nats_is_there(&self) -> bool {
        TcpStream::connect(self.nats().strip_prefix("nats://").unwrap()).is_ok()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.signal(Signal::TERM);
            self.ended();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_system_starts_with_the_demo_account_and_ends_cleanly() {
    let mut up = Up::start(&["--demo", "--ephemeral"]);
    let said = up.said();
    assert!(said.contains("Switchboard is ready"), "{said}");
    assert!(said.contains(up.addresses["services"][0]["mqtt"].as_str().unwrap()), "{said}");

    let devices = up.json(&["device", "list", "--json"]);
    let names: Vec<_> =
        devices.as_array().unwrap().iter().map(|device| device["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 7);
    assert_eq!(names[0], "Test Device A1");

    let called = up.run(&["call", "--from", "A1", "--to", "A2", "--json", r#"{"x":1}"#]);
    assert_eq!(called.status.code(), Some(1));
    let called: Value = serde_json::from_slice(&called.stdout).unwrap();
    assert_eq!(called["outcome"], "offline");
    assert_eq!(called["body"]["error"], "No active connection to the remote device!");
    let denied = up.run(&["call", "--from", "A1", "--to", "B1"]);
    assert!(text(&denied.stdout).contains("This action is not allowed!"));
    assert!(text(&denied.stderr).contains("denied in"));

    up.signal(Signal::INT);
    assert_eq!(up.ended().code(), Some(0), "{}", up.said());
    assert!(!up.nats_is_there());
    assert!(!up.folder.path().join("addresses.json").exists());
}

#[test]
fn data_survives_and_belongs_to_one_process_at_a_time() {
    let mut up = Up::start(&["--demo", "--data", "data"]);
    up.ok(&["device", "rename", "Test Device A1", "Renamed"]);
    let addresses = up.folder.path().join("other.json");
    let other = tempfile::tempdir().unwrap();
    let data = up.folder.path().join("data");
    let refused =
        Up::command(other.path(), &addresses, &["--data", data.to_str().unwrap()]).status().unwrap();
    assert_eq!(refused.code(), Some(1));
    let said = std::fs::read_to_string(other.path().join("err")).unwrap();
    assert!(said.contains(&format!("process {}", up.child.id())) && said.contains("--data"), "{said}");
    up.signal(Signal::TERM);
    assert_eq!(up.ended().code(), Some(0));

    let folder = std::mem::replace(&mut up.folder, tempfile::tempdir().unwrap());
    let again = Up::start_in(folder, &["--demo", "--data", "data"]);
    assert_eq!(
        again.json(&["device", "show", "Renamed", "--json"])["id"],
        "ce06a480-9fce-11e6-8080-808080808080"
    );
    assert!(again.said().contains("left as they are"), "{}", again.said());
}

#[test]
fn a_killed_system_leaves_no_nats_server_behind() {
    let mut up = Up::start(&["--data", "data"]);
    let nats: i32 = std::fs::read_to_string(up.folder.path().join("data/nats.pid")).unwrap().parse().unwrap();
    let nats = Pid::from_raw(nats).unwrap();
    up.signal(Signal::KILL);
    up.ended();
    wait_for("the end of nats-server", || test_kill_process(nats).is_err().then_some(()));
    let folder = std::mem::replace(&mut up.folder, tempfile::tempdir().unwrap());
    Up::start_in(folder, &["--data", "data"]);
}

#[test]
fn a_nats_server_that_dies_is_started_again_and_everybody_finds_it() {
    let up = Up::start(&["--demo", "--data", "data"]);
    let pid_file = up.folder.path().join("data/nats.pid");
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    wait_for("a new nats-server", || {
        let now = std::fs::read_to_string(&pid_file).ok()?;
        (now != pid && !now.is_empty()).then_some(())
    });
    wait_for("a call that finds its way again", || {
        let called = up.run(&["call", "--from", "A1", "--to", "A2", "--json"]);
        let called: Value = serde_json::from_slice(&called.stdout).ok()?;
        (called["outcome"] == "offline").then_some(())
    });
    assert_eq!(up.json(&["device", "list", "--json"]).as_array().unwrap().len(), 7);
}

#[test]
fn the_registry_is_kept_by_names_and_ids() {
    let up = Up::start(&["--ephemeral"]);
    let none = up.run(&["device", "add", "Pump 1"]);
    assert!(text(&none.stderr).contains("tenant add"), "{}", text(&none.stderr));
    up.ok(&["tenant", "add", "Acme"]);
    up.ok(&["customer", "add", "Waterworks"]);
    let pump =
        up.json(&["device", "add", "Pump 1", "--customer", "Waterworks", "--label", "site=north", "--json"]);
    let token = pump["token"].as_str().unwrap();
    assert!(token.len() >= 20);
    assert!(!up.ok(&["device", "show", "Pump 1", "--json"]).contains(token), "shown once");
    let id = pump["id"].as_str().unwrap();
    assert!(up.ok(&["device", "show", id]).contains("site=north"));

    up.ok(&["device", "label", "set", "Pump 1", "room=12", "site=south"]);
    assert!(up.ok(&["device", "list", "--label", "room", "--label", "site=south"]).contains("Pump 1"));
    assert!(!up.ok(&["device", "list", "--label", "site=north"]).contains("Pump 1"));
    assert!(up.ok(&["device", "show", "room=12,site=south"]).contains("Pump 1"), "named by its labels");
    up.ok(&["device", "retype", "room=12", "pump"]);
    assert!(up.ok(&["device", "list", "--type", "pump"]).contains("Pump 1"));
    assert!(!up.ok(&["device", "list", "--type", "default"]).contains("Pump 1"));
    let exported = up.ok(&["device", "export", "--format", "csv", "--type", "pump"]);
    assert!(exported.starts_with("tenant,customer,id,name,type,label:"), "{exported}");
    assert!(exported.contains("Pump 1,pump,"), "{exported}");
    let refused = up.run(&["device", "retype", "Pump 1", ""]);
    assert!(text(&refused.stderr).contains("type must be 1 to 255 characters"), "{}", text(&refused.stderr));
    up.ok(&["device", "label", "remove", "Pump 1", "site"]);
    let none = up.run(&["device", "label", "remove", "Pump 1", "site"]);
    assert!(text(&none.stderr).contains("no label \"site\"; it has: room=12"), "{}", text(&none.stderr));
    let refused = up.run(&["device", "label", "set", "Pump 1", &format!("{}=x", "k".repeat(64))]);
    assert!(text(&refused.stderr).contains("the key of a label must be 1 to 63 characters"));

    let taken = up.run(&["device", "add", "Pump 1"]);
    assert_eq!(taken.status.code(), Some(1));
    assert!(text(&taken.stderr).contains("this name is taken"));
    let used = up.run(&["customer", "remove", "Waterworks", "--yes"]);
    assert!(text(&used.stderr).contains("it has 1 device"), "{}", text(&used.stderr));
    let unasked = up.run(&["device", "remove", id]);
    assert!(text(&unasked.stderr).contains("--yes"));

    up.ok(&["device", "rename", id, "Pump 2"]);
    let rotated = up.json(&["device", "rotate-token", "Pump 2", "--yes", "--json"]);
    assert_ne!(rotated["token"], token);
    up.ok(&["device", "unassign", "Pump 2"]);
    assert!(up.ok(&["device", "list", "--unassigned"]).contains("Pump 2"));
    up.ok(&["device", "assign", "Pump 2", "Waterworks"]);
    up.ok(&["device", "remove", "Pump 2", "--yes"]);
    up.ok(&["customer", "rename", "Waterworks", "Works"]);
    up.ok(&["customer", "remove", "Works", "--yes"]);
    up.ok(&["tenant", "rename", "Acme", "Emca"]);
    up.ok(&["tenant", "remove", "Emca", "--yes"]);
    assert_eq!(up.json(&["tenant", "list", "--json"]), Value::Array(Vec::new()));
}

#[test]
fn policies_are_put_explained_compared_and_rolled_back() {
    let up = Up::start(&["--ephemeral"]);
    up.ok(&["tenant", "add", "Acme"]);
    for (name, room) in [("lamp", "12"), ("door", "12"), ("pump", "14")] {
        up.ok(&["device", "add", name, "--label", &format!("room={room}")]);
    }
    let calls = |from: &str, to: &str| {
        let called = up.run(&["call", "--from", from, "--to", to, "--json"]);
        let read: Value = serde_json::from_slice(&called.stdout).unwrap();
        read["outcome"].as_str().unwrap().to_owned()
    };
    assert_eq!(calls("lamp", "door"), "denied");
    let rooms = "permit (principal is Device, action, resource) when {\n  principal.hasTag(\"room\") && \
                 resource.hasTag(\"room\") && principal.getTag(\"room\") == resource.getTag(\"room\")\n};\n";
    let rooms = up.file("rooms.cedar", rooms);
    let wrong = up
        .file("wrong.cedar", "permit (principal is Device, action, resource)\n  when { context.hours < 7 };");
    let (rooms, wrong) = (rooms.to_str().unwrap(), wrong.to_str().unwrap());
    let refused = up.run(&["policy", "put", wrong]);
    assert!(text(&refused.stderr).contains("wrong:2:"), "{}", text(&refused.stderr));
    assert_eq!(switchboard(&["policy", "check", rooms]).output().unwrap().status.code(), Some(0));
    let diff = up.json(&["policy", "diff", rooms, "--json"]);
    assert_eq!((&diff["more"], &diff["fewer"]), (&4.into(), &0.into()), "two pairs, call and list");
    assert_eq!(up.run(&["policy", "diff", rooms, "--fail-on", "widen"]).status.code(), Some(1));
    wait_for("the denied call is recorded, and would be allowed", || {
        let diff = up.json(&["policy", "diff", rooms, "--json"]);
        (diff["denials"] == 1 && diff["nowAllowed"] == 1).then_some(())
    });

    let put = up.run(&["policy", "put", rooms, "--as", "Ann", "--why", "two rooms"]);
    assert!(put.status.success(), "{}", text(&put.stderr));
    assert!(text(&put.stdout).contains("Version 1 is live: 2 policies in built-in, rooms."));
    wait_for("the new policies in force", || (calls("lamp", "door") == "offline").then_some(()));
    assert_eq!(calls("lamp", "pump"), "denied");
    let why = up.run(&["policy", "explain", "--from", "lamp", "--to", "pump"]);
    let told = text(&why.stdout);
    assert_eq!(why.status.code(), Some(1));
    assert!(told.contains("denied, no policy permits it") && told.contains("permit rooms:1"), "{told}");
    assert!(told.contains("give \"pump\" the label room=12"), "{told}");
    up.ok(&["device", "label", "set", "pump", "room=12"]);
    assert!(
        up.ok(&["policy", "explain", "--from", "lamp", "--to", "pump"]).contains("allowed, permit rooms:1")
    );
    wait_for("the new label in force", || (calls("lamp", "pump") == "offline").then_some(()));
    assert!(up.ok(&["policy", "whom", "--may", "lamp", "call"]).contains("door"));
    assert_eq!(up.json(&["policy", "who", "--may-call", "door", "--json"]).as_array().unwrap().len(), 2);

    up.ok(&["policy", "remove", "rooms"]);
    wait_for("the policies without rooms in force", || (calls("lamp", "door") == "denied").then_some(()));
    up.ok(&["policy", "rollback", "1"]);
    wait_for("the first version in force again", || (calls("lamp", "door") == "offline").then_some(()));
    let history = up.json(&["policy", "history", "--json"]);
    assert_eq!(history.as_array().unwrap().len(), 3);
    assert_eq!((&history[2]["who"], &history[2]["why"]), (&"Ann".into(), &"two rooms".into()));

    // A shadow decides nothing, says what it would, and becomes live as it is.
    up.ok(&["device", "retype", "door", "door"]);
    let doors = up.file(
        "doors.cedar",
        "@id(\"no doors\")\nforbid (principal is Device, action == Action::\"call\", resource in Group::\"room=12\") \
         when {\n  resource.type == \"door\" && context.protocol == \"mqtt\" };\n",
    );
    up.ok(&["policy", "put", doors.to_str().unwrap(), "--shadow"]);
    let diff = up.json(&["policy", "diff", "--shadow", "--json"]);
    assert_eq!(
        (&diff["more"], &diff["fewer"]),
        (&0.into(), &2.into()),
        "lamp and pump may no longer call door"
    );
    assert_eq!(calls("lamp", "door"), "offline");
    let listed = up.run(&["policy", "list"]);
    assert!(text(&listed.stderr).contains("A shadow is judged beside them: built-in, doors, rooms."));
    assert!(up.ok(&["policy", "promote", "--as", "Ann"]).contains("Version 4 is live"));
    let why = up.run(&["policy", "explain", "--from", "lamp", "--to", "door", "--method", "sendMsg"]);
    let told = text(&why.stdout);
    assert!(told.contains("denied, forbid doors:1 \"no doors\""), "{told}");
    assert!(told.contains("resource.type = \"door\"") && told.contains("call over http"), "{told}");
    assert!(text(&up.run(&["policy", "promote"]).stderr).contains("no shadow"));
    up.ok(&["policy", "put", rooms, "--shadow"]);
    up.ok(&["policy", "put", rooms]);
    let outdated = up.run(&["policy", "promote"]);
    assert!(
        text(&outdated.stderr).contains("beside version 4, and version 5 is live"),
        "{}",
        text(&outdated.stderr)
    );
    up.ok(&["policy", "drop-shadow"]);
}

#[test]
fn what_an_import_refuses_it_names_and_what_it_takes_it_shows_once() {
    let up = Up::start(&["--ephemeral"]);
    let rows = "name,tenant,customer,token,label:room\nP1,Acme,Works,,12\nP2,Acme,Works,my-very-own-token,\n\
                P2,Acme,,,\nP4,Acme,,bad\ttoken,\nP5,Acme,,,\n";
    let file = up.file("rows.csv", rows);
    let tokens = up.folder.path().join("tokens.csv");
    let (file, kept) = (file.to_str().unwrap(), tokens.to_str().unwrap());
    let missing = up.run(&["device", "import", file]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("--create"));

    let imported = up.run(&["device", "import", "--create", "--json", "--tokens-out", kept, file]);
    assert_eq!(imported.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&imported.stdout).unwrap();
    let created: Vec<_> =
        report["created"].as_array().unwrap().iter().map(|device| &device["name"]).collect();
    assert_eq!(created, ["P1", "P2", "P5"]);
    assert!(!text(&imported.stdout).contains("my-very-own-token"), "the file has them");
    let refused: Vec<_> = report["refused"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["place"].clone(), row["field"].clone()))
        .collect();
    assert_eq!(refused, [("line 4".into(), "name".into()), ("line 5".into(), "token".into())]);
    assert_eq!(tokens.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(&tokens).unwrap().contains("my-very-own-token"));

    // The same again, from the file with the tokens and from an export without them, changes nothing.
    assert!(up.ok(&["device", "import", kept]).contains("0 devices added, 3 there already."));
    let export = up.folder.path().join("export.json");
    up.ok(&["device", "export", "--out", export.to_str().unwrap()]);
    let exported = std::fs::read_to_string(&export).unwrap();
    assert!(exported.contains("Works") && !exported.contains("my-very-own-token"));
    assert_eq!(export.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(
        up.ok(&["device", "import", export.to_str().unwrap()]).contains("0 devices added, 3 there already.")
    );
    let csv = up.folder.path().join("export.csv");
    up.ok(&["device", "export", "--format", "csv", "--out", csv.to_str().unwrap()]);
    assert!(std::fs::read_to_string(&csv).unwrap().starts_with("tenant,customer,id,name,label:room\n"));
    assert!(
        up.ok(&["device", "import", csv.to_str().unwrap()]).contains("0 devices added, 3 there already.")
    );
    let elsewhere = Up::start(&["--ephemeral"]);
    let shown = elsewhere.ok(&["device", "import", export.to_str().unwrap()]);
    assert!(shown.contains("TOKEN") && shown.contains("3 devices added."), "{shown}");
    let csv = elsewhere.ok(&["device", "export", "--format", "csv"]);
    assert!(csv.starts_with("tenant,customer,id,name,label:room\nAcme,Works,"), "{csv}");
}

#[test]
fn an_import_that_was_cut_off_goes_on_when_it_is_typed_again() {
    let up = Up::start(&["--ephemeral"]);
    up.ok(&["tenant", "add", "Acme"]);
    let file = up.file("rows.csv", "name,tenant\nP1,Acme\nP2,Acme\nP3,Acme\n");
    // What a run leaves that is killed: all tokens, beside the file, and some of the devices.
    let id = "00000000-0000-0000-0000-000000000007";
    let left = format!("tenant,customer,id,name,type,token\nAcme,,{id},P2,,token-of-the-second\n");
    let tokens = up.file("rows.csv.tokens.csv", &left);
    up.ok(&["device", "add", "P2", "--id", id, "--token", "token-of-the-second"]);
    let said = up.ok(&["device", "import", file.to_str().unwrap()]);
    assert!(said.contains("2 devices added, 1 added before the interruption."), "{said}");
    assert!(
        said.contains("token-of-the-second") && !tokens.exists(),
        "shown, and only then forgotten: {said}"
    );
    // What had been added before has its record already.
    let imported = || up.json(&["audit", "query", "--kind", "device.import", "--json"]);
    let told = imported();
    assert_eq!(
        (told.as_array().unwrap().len(), told[0]["devices"].as_array().unwrap().len()),
        (1, 2),
        "{told}"
    );
    let again = up.ok(&["device", "import", file.to_str().unwrap()]);
    assert!(again.contains("0 devices added, 3 there already.") && !tokens.exists(), "{again}");
    assert_eq!(imported(), told);
    // Another file's tokens are not lost to this one's.
    let kept = up.file("kept.csv", &left.replace("P2", "P9"));
    let more = up.file("more.csv", "name,tenant\nP4,Acme\n");
    up.ok(&["device", "import", "--tokens-out", kept.to_str().unwrap(), more.to_str().unwrap()]);
    let kept = std::fs::read_to_string(&kept).unwrap();
    assert!(kept.contains("P9,,token-of-the-second") && kept.contains("P4"), "{kept}");
    // The same name is the same device only where the rest is the same.
    let other = up.file("other.csv", "name,tenant,type\nP1,Acme,pump\n");
    let refused = up.run(&["device", "import", other.to_str().unwrap()]);
    assert!(text(&refused.stderr).contains("has it already, with another type"), "{refused:?}");
}

#[test]
fn a_backup_makes_an_empty_system_the_same_again() {
    let up = Up::start(&["--ephemeral", "--demo"]);
    up.ok(&["tenant", "add", "Acme"]);
    up.ok(&[
        "device",
        "add",
        "Pump",
        "--tenant",
        "Acme",
        "--token",
        "token-of-the-pump",
        "--label",
        "room=12",
    ]);
    let app: Value = up.json(&["app", "add", "backend", "--tenant", "Acme", "--json"]);
    let policy = up.file("quiet.cedar", "forbid (principal, action, resource);");
    up.ok(&["policy", "put", "--tenant", "Acme", policy.to_str().unwrap()]);
    let file = up.folder.path().join("system.backup");
    let backup = file.to_str().unwrap();
    up.ok(&["backup", backup]);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(!written.contains("token-of-the-pump") && !written.contains(app["key"].as_str().unwrap()));

    let other = Up::start(&["--ephemeral"]);
    assert!(other.ok(&["restore", "--check", backup]).contains("whole"));
    assert_eq!(other.ok(&["device", "list", "--json"]).trim(), "[]", "it was only checked");
    assert!(other.ok(&["restore", backup]).contains("0 there already, 0 refused."));
    for list in [
        &["device", "list", "--json"][..],
        &["customer", "list", "--json"],
        &["app", "list", "--json"],
        &["policy", "history", "--tenant", "Acme", "--json"],
    ] {
        assert_eq!(other.json(list), up.json(list), "{list:?}");
    }
    // Tokens are good: a device comes in, and is told whom it may call.
    let http = other.addresses["services"][0]["http"].as_str().unwrap();
    wait_for("the device is let in", || {
        let call = ["call", "--via", "http", "--at", http, "--token", "A1_TEST_TOKEN", "--to", "A2"];
        let said = other.run(&call);
        text(&said.stdout).contains("No active connection").then_some(())
    });
    assert!(other.ok(&["restore", backup]).contains("0 records restored"), "the same again changes nothing");

    // What stands there otherwise is left as it is, and half a file is none.
    other.ok(&["device", "rename", "Pump", "Valve"]);
    let refused = other.run(&["restore", backup]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("device \"Pump\""), "{refused:?}");
    let half = up.file("half.backup", &written[..written.len() / 2]);
    assert!(!other.run(&["restore", half.to_str().unwrap()]).status.success());
}

#[test]
fn it_says_what_it_is_to_people_shells_and_machines() {
    let ran = |arguments: &[&str]| switchboard(arguments).output().unwrap();
    let version: Value = serde_json::from_slice(&ran(&["version", "--json"]).stdout).unwrap();
    let said = text(&ran(&["version"]).stdout);
    assert!(said.starts_with(&format!("switchboard {}", version["version"].as_str().unwrap())), "{said}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&ran(&["completions", shell]).stdout).contains("rotate-token"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(ran(&["man", folder.path().to_str().unwrap()]).status.success());
    let page = std::fs::read_to_string(folder.path().join("switchboard-device-import.1")).unwrap();
    assert!(page.contains("Write the devices with their tokens"), "{page}");
    assert!(std::fs::read_to_string(folder.path().join("switchboard.1")).unwrap().contains("130"));
    assert!(!ran(&["man", "/nonexistent"]).status.success());
}

#[test]
fn a_list_of_devices_has_pages() {
    let up = Up::start(&["--ephemeral", "--demo"]);
    let names = |arguments: &[&str]| {
        let listed = up.json(&[&["device", "list", "--json"], arguments].concat());
        let names = listed.as_array().unwrap().iter();
        names
            .map(|it| (it["name"].as_str().unwrap().to_owned(), it["id"].as_str().unwrap().to_owned()))
            .unzip::<_, _, Vec<_>, Vec<_>>()
    };
    let (all, _) = names(&["--name", "test device"]);
    assert_eq!(
        all,
        ["Test Device A1", "Test Device A2", "Test Device A3", "Test Device B1", "Test Device C1"]
    );
    let (first, ids) = names(&["--name", "TEST", "--limit", "2"]);
    let (rest, _) = names(&["--name", "TEST", "--after", &ids[1]]);
    assert_eq!([first, rest].concat(), all);
    let told = up.run(&["device", "list", "--name", "Test", "--limit", "2"]);
    assert!(text(&told.stderr).contains(&format!("3 more: --after {}", ids[1])), "{told:?}");
    let stranger = up.run(&["device", "list", "--after", "00000000-0000-0000-0000-000000000001"]);
    assert_eq!(stranger.status.code(), Some(1));
}

/// A device of the demo account, played by the command until it has been called once.
fn emulated(arguments: &[&str]) -> Child {
    let play = [&["device", "emulate", "--token", "A2_TEST_TOKEN", "--count", "1"], arguments].concat();
    switchboard(&play).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_device_is_played_over_http_and_mqtt() {
    let up = Up::start(&["--ephemeral", "--demo"]);
    let address = |of: &str| up.addresses["services"][0][of].as_str().unwrap().to_owned();
    // By name, too.
    let at = |of: &str| address(of).replace("127.0.0.1", "localhost");
    let call = [
        "call",
        "--from",
        "A1",
        "--to",
        "A2",
        "--timeout-ms",
        "30000",
        "--connect-timeout-ms",
        "30000",
        "{\"x\":1}",
    ];
    for (via, answer, reply) in [
        ("http", "{\"status\":\"ok\"}", &[][..]),
        ("mqtt", "[21]", &["--reply", "[21]"]),
        ("mqtt", "{\"x\":1}", &["--exec", "cat"]),
        ("http", "onMsg", &["--exec", "echo \"\\\"$SWITCHBOARD_METHOD\\\"\""]),
    ] {
        let device = emulated(&[&["--via", via, "--at", &at(via)], reply].concat());
        assert!(up.ok(&call).contains(answer), "{via} {reply:?}");
        let ended = device.wait_with_output().unwrap();
        assert!(ended.status.success());
        let seen: Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!((&seen["method"], &seen["params"]), (&"onMsg".into(), &serde_json::json!({"x": 1})));
    }
    let unknown = ["device", "listen", "--token", "nobody-has-this-token", "--at", &at("http")];
    let refused = switchboard(&unknown).output().unwrap();
    assert!(text(&refused.stderr).contains("no device has this access token"), "{refused:?}");
}

#[test]
fn health_is_asked_of_a_service() {
    let up = Up::start(&["--ephemeral"]);
    let admin = up.addresses["services"][0]["admin"].as_str().unwrap();
    let health = |asked: &[&str]| switchboard(&[&["health"], asked].concat()).output().unwrap();
    let ready = health(&["--set", &format!("admin.listen={admin}")]);
    assert!(ready.status.success(), "{ready:?}");
    assert!(health(&[&format!("http://{admin}/livez")]).status.success());
    assert_eq!(health(&[&format!("http://{admin}/nothing")]).status.code(), Some(1));
    assert_eq!(health(&["http://127.0.0.1:1"]).status.code(), Some(1), "nobody is there");
    assert_eq!(health(&["ftp://127.0.0.1"]).status.code(), Some(2));
}

#[test]
fn of_many_refused_rows_a_file_has_all() {
    let up = Up::start(&["--ephemeral"]);
    let file = up.file("rows.csv", &format!("name,tenant\n{}", "P1,Nobody\n".repeat(30)));
    let refused = up.run(&["device", "import", file.to_str().unwrap()]);
    let said = text(&refused.stderr);
    assert_eq!((refused.status.code(), said.matches("tenant must be").count()), (Some(1), 20), "{said}");
    assert!(said.contains("10 more"), "{said}");
    let all = std::fs::read_to_string(up.folder.path().join("rows.csv.refused.csv")).unwrap();
    assert_eq!(all.lines().count(), 31, "{all}");
    assert!(!up.folder.path().join("rows.csv.tokens.csv").exists());
}

#[test]
fn nineteen_thousand_devices_are_imported_in_seconds() {
    let up = Up::start(&["--ephemeral"]);
    let mut rows = "tenant,customer,id,name,token\n".to_owned();
    for number in 0..19_000 {
        rows += &format!("Load,Customer {},,Device {number},\n", number / 1000);
    }
    let file = up.file("rows.csv", &rows);
    let tokens = up.folder.path().join("tokens.csv");
    let (file, kept) = (file.to_str().unwrap(), tokens.to_str().unwrap());
    let import = ["device", "import", "--create", "--tokens-out", kept, file];
    let started = Instant::now();
    // Interrupted as soon as it has begun, it goes on with the tokens that were made up.
    let mut begun = switchboard(&import).args(["--nats", up.nats()]).stdout(Stdio::null()).spawn().unwrap();
    wait_for("the tokens", || tokens.exists().then_some(()));
    let first = std::fs::read_to_string(&tokens).unwrap();
    kill_process(Pid::from_raw(begun.id() as i32).unwrap(), Signal::INT).unwrap();
    assert_eq!(begun.wait().unwrap().code(), Some(130));
    let there = up.json(&["device", "list", "--json"]).as_array().unwrap().len();
    assert!(there < 19_000, "it was interrupted");
    let said = up.ok(&import);
    println!("imported in {:.1} s, {there} of them at first", started.elapsed().as_secs_f64());
    assert!(said.ends_with(".\n") && !said.contains("refused") && !said.contains("left"), "{said}");
    assert!(std::fs::read_to_string(&tokens).unwrap() == first, "the tokens are those made up at first");
    assert!(up.ok(&["device", "import", kept]).contains("0 devices added, 19,000 there already."));
    assert!(started.elapsed() < PATIENCE);
    assert_eq!(
        up.json(&["device", "list", "--customer", "Customer 7", "--json"]).as_array().unwrap().len(),
        1000
    );
}

#[test]
fn what_is_wrong_is_said_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let addresses = folder.path().join("addresses.json");
    let said = |arguments: &[&str], code: i32| {
        let status = Up::command(folder.path(), &addresses, arguments).status().unwrap();
        let said = std::fs::read_to_string(folder.path().join("err")).unwrap();
        assert_eq!(status.code(), Some(code), "{said}");
        said
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let mqtt =
        said(&["--ephemeral", "--set", &format!("mqtt.listen={taken}"), "--mqtt", &taken.to_string()], 1);
    assert!(mqtt.contains(&taken.to_string()) && mqtt.contains("mqtt.listen"), "{mqtt}");
    let both = said(&["--ephemeral", "--mqtt", &taken.to_string(), "--api", &taken.to_string()], 1);
    assert!(
        both.contains("--mqtt, setting mqtt.listen") && both.contains("--api, setting api.listen"),
        "{both}"
    );
    let missing = said(&["--ephemeral", "--nats-server", "/nowhere/nats-server"], 1);
    assert!(missing.contains("/nowhere/nats-server"), "{missing}");
    let faults = said(&["--set", "mqtt.lisen=1", "--set", "nats.replicas=9"], 2);
    assert!(faults.contains("mqtt.listen") && faults.contains("nats.replicas"), "{faults}");

    for (listens, setting) in [
        ("mqtt.listen=0.0.0.0:0", "mqtt.listen is 0.0.0.0:0"),
        ("http.listen=[::]:0", "http.listen is [::]:0"),
        ("coap.listen=192.0.2.1:5683", "coap.listen is 192.0.2.1:5683"),
    ] {
        let open = switchboard(&["up", "--ephemeral", "--demo", "--set", listens]).output().unwrap();
        assert_eq!(open.status.code(), Some(2), "{}", text(&open.stderr));
        let said = text(&open.stderr);
        assert!(said.contains(setting) && said.contains("--demo-on-network"), "{said}");
    }
    let told = said(&["--ephemeral", "--demo", "--demo-on-network", "--coap", "192.0.2.1:5683"], 1);
    assert!(told.contains("192.0.2.1:5683") && !told.contains("public"), "it tried: {told}");

    let unreachable = switchboard(&["device", "list", "--nats", "nats://127.0.0.1:1"]).output().unwrap();
    assert_eq!(unreachable.status.code(), Some(1));
    assert!(text(&unreachable.stderr).contains("nats://127.0.0.1:1"));
    assert!(text(&unreachable.stderr).contains("switchboard up"));
    let printed = switchboard(&["config", "print"]).output().unwrap();
    assert!(text(&printed.stdout).contains("[mqtt]"));
    assert_eq!(switchboard(&["config", "check", "--set", "x=1"]).status().unwrap().code(), Some(2));
    let ca =
        ["config", "check", "--set", "nats.tls_ca_file=/nowhere/ca.pem", "--set", "nats.url=tls://n:4222"];
    let unread = switchboard(&ca).output().unwrap();
    assert_eq!(unread.status.code(), Some(2));
    assert!(text(&unread.stderr).contains("nats.tls_ca_file: /nowhere/ca.pem: "), "{unread:?}");
    assert!(switchboard(&ca).arg("--elsewhere").status().unwrap().success());
}
