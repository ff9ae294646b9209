"""Does the compose file do what its README says? Held to its specification, then run by podman-compose and asked as devices ask."""

import json
import re
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.compose import FILE, FOLDER, PROFILES, Compose, ComposeSystem, module, yaml
from harness.hardened import new_issuer
from harness.ports import any_ports
from harness.processes import Process, Ran, run
from harness.programs import ROOT, built, tool
from harness.waiting import until

# The first test of the system waits until the programs are built for the image, on whatever machine.
pytestmark = pytest.mark.timeout(1800)

README = (FOLDER / "README.md").read_text()
EXAMPLES = ROOT / "tests" / "examples"
MQTTJS = ROOT / "tests" / "clients" / "mqttjs" / "node_modules"
SERVERS = ["nats-1", "nats-2", "nats-3"]
SERVICES = ["ingress-1", "ingress-2", "authorizer-1", "authorizer-2", "router-1", "router-2", "api-1", "api-2"]
RUN = [*SERVERS, *SERVICES, "prometheus"]
# The linter's rules that are not followed.
EXCEPTIONS = {
    "CL-0019": "the digest is the operator's to give: his registry may be another",
    "CL-0026": "docker refuses a limit above the processors that there are, and how many there are is not known",
}
OTHERS = [
    {"id": "aa435e80-9fce-11e6-8080-808080808080", "name": "Test Device A2"},
    {"id": "86801880-9fce-11e6-8080-808080808080", "name": "Test Device A3"},
]
AWAY = {"error": "No active connection to the remote device!"}
OK = {"status": "ok"}


@pytest.fixture(scope="module")
def passwords(tmp_path_factory) -> str:
    """What the README's command makes."""
    file = tmp_path_factory.mktemp("passwords") / "env"
    (command,) = re.findall(r"^\(umask.*?^done .*?\)$", README, re.MULTILINE | re.DOTALL)
    run("sh", "-c", command.replace("deploy/compose/.env", str(file))).ok()
    assert file.stat().st_mode & 0o777 == 0o600
    return file.read_text()


@pytest.fixture(scope="module")
def config(passwords, tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("config") / "env"
    file.write_text(passwords)
    return Compose(file).config()


@pytest.fixture(scope="module")
def services(config) -> dict[str, dict]:
    return config["services"]


@pytest.fixture(scope="module")
def system(passwords, services, tmp_path_factory):
    system = ComposeSystem(tmp_path_factory.mktemp("system"), passwords)
    try:
        system.build(tmp_path_factory.mktemp("images"), {name: it["image"] for name, it in services.items()})
        system.compose("up", "--detach", *RUN).ok()
        system.compose("--profile", "demo", "up", "--detach", "demo").ok()
        until("the demo account is there", lambda: is_imported(system.logs("demo")))
        yield system
    finally:
        print(system.logs("demo"))
        system.close()


def is_imported(log: str) -> bool:
    """While the servers choose a leader an import may end half-way; started again, it finds what is there already."""
    ends = re.findall(r"^(\d+) devices added(?:, (\d+) there already)?\.", log, re.MULTILINE)
    return any(int(added) + int(already or 0) == 7 for added, already in ends)


def test_it_follows_the_specification(tmp_path):
    module("check_jsonschema", "--builtin-schema", "vendor.compose-spec", FILE).ok()
    faulty = tmp_path / "compose.yaml"
    faulty.write_text(FILE.read_text().replace("cap_drop:", "cap_dropped:"))
    assert module("check_jsonschema", "--builtin-schema", "vendor.compose-spec", faulty).code == 1


def test_a_linter_finds_no_fault():
    report = json.loads(module("compose_lint", "check", "--format", "json", FILE).out)
    assert {it["rule_id"] for it in report["findings"]} == set(EXCEPTIONS)


def test_without_passwords_it_does_not_start(passwords, tmp_path):
    def without(line: str) -> Ran:
        file = tmp_path / line.split("=")[0]
        file.write_text(passwords.replace(line, ""))
        return Compose(file)("config")

    with ThreadPoolExecutor() as pool:
        for refused in pool.map(without, passwords.splitlines()):
            assert refused.code != 0
            assert "README.md" in refused.err, refused


def test_a_password_is_known_to_whom_it_is_for(passwords, services):
    secrets = dict(line.split("=") for line in passwords.splitlines())
    assert len(set(secrets.values())) == len(secrets) == 9
    for variable, password in secrets.items():
        knows = {name for name, it in services.items() if password in json.dumps(it)}
        user = variable.removesuffix("_PASSWORD").removeprefix("SWITCHBOARD_").lower()
        own = {name for name in services if name.removesuffix("-1").removesuffix("-2") == user}
        own |= {"demo"} if user == "operator" else set()
        assert knows == own | (set(SERVERS) if user != "grafana" else set())


def test_an_identity_for_each_node_is_some_lines_away(passwords, services, tmp_path):
    """As its servers read it; each service of it knows what it must, and without the lines nothing of it is there."""
    seed, issuer = new_issuer()
    lines = re.findall(r"^    echo \"?(\w+)=", README, re.MULTILINE)
    assert lines == ["SWITCHBOARD_IDENTITY_PASSWORD", "COMPOSE_PROFILES", "NATS_CONFIG"]
    (tmp_path / "env").write_text(
        f"{passwords}SWITCHBOARD_IDENTITY__ISSUER_SEED={seed}\nSWITCHBOARD_IDENTITY_ISSUER={issuer}\n"
        "SWITCHBOARD_IDENTITY_PASSWORD=ofidentity\nCOMPOSE_PROFILES=identity\nNATS_CONFIG=/etc/nats/identified.conf\n"
    )
    identified = yaml.safe_load(Compose(tmp_path / "env")("--profile", "identity", "config").ok().out)["services"]
    knows = {secret: {name for name, it in identified.items() if secret in json.dumps(it)} for secret in (seed, "ofidentity")}
    assert knows == {seed: {"identity-1", "identity-2"}, "ofidentity": {"identity-1", "identity-2", *SERVERS}}
    for name in ("identity-1", "identity-2"):
        run(built("switchboard"), "config", "check", "--elsewhere", env=identified[name]["environment"]).ok()
        joins = identified[name]["environment"]["SWITCHBOARD_IDENTITY__JOIN_SECRET"]
        assert joins == identified["ingress-1"]["environment"]["SWITCHBOARD_NATS__PASSWORD"]
    server = identified["nats-1"]
    assert server["command"] == ["--config", "/etc/nats/identified.conf"]
    assert services["nats-1"]["command"] == ["--config", "/etc/nats/cluster.conf"]
    for volume in server["volumes"]:
        source, inside = volume.split(":")[:2]
        if source.startswith("."):
            place = tmp_path / inside.removeprefix("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to((FOLDER / source).resolve())
    run(tool("nats-server"), "-t", "--config", tmp_path / "etc/nats/identified.conf", env=server["environment"]).ok()


def test_nats_over_tls_is_a_file_away(passwords, tmp_path):
    """The certificates of the README's command, and everybody who reaches NATS knows whose word counts."""
    (command,) = re.findall(r"^\(umask 077; mkdir.*?ca\.crt\)$", README, re.MULTILINE | re.DOTALL)
    run("sh", "-c", command.replace("deploy/compose", str(tmp_path))).ok()
    assert (tmp_path / "tls" / "nats.key").stat().st_mode & 0o777 == 0o600
    run("openssl", "verify", "-CAfile", tmp_path / "tls/ca.crt", "-verify_hostname", "nats-2", tmp_path / "tls/nats.crt").ok()
    (tmp_path / "env").write_text(passwords)
    over_tls = Compose(tmp_path / "env", "--file", FOLDER / "tls.yaml")
    services = yaml.safe_load(over_tls("--profile", "identity", *PROFILES, "config").ok().out)["services"]
    for name, it in services.items():
        files = {volume.split(":")[0]: volume.split(":")[1] for volume in it.get("volumes", []) if volume.startswith("./tls")}
        if name in SERVERS:
            assert it["command"][2:] == ["--tls", "--tlscert", files["./tls/nats.crt"], "--tlskey", files["./tls/nats.key"]]
            assert "/data" in str(it["volumes"])
        elif "SWITCHBOARD_NATS__URL" in it.get("environment", {}):
            assert it["environment"]["SWITCHBOARD_NATS__TLS_CA_FILE"] == files["./tls/ca.crt"], name
        else:
            assert name in ("prometheus", "grafana")


def test_every_file_that_is_mounted_is_there(config, services):
    volumes = {volume for it in services.values() for volume in it.get("volumes", [])}
    sources = [volume.split(":")[0] for volume in volumes]
    for source in sources:
        assert source in config["volumes"] or (FOLDER / source).exists(), source
    assert {source for source in sources if not source.startswith(".")} == set(config["volumes"])


def test_every_setting_is_one(services):
    for name in [*SERVICES, "demo", "operator"]:
        run(built("switchboard"), "config", "check", "--elsewhere", env=services[name]["environment"]).ok()


def test_every_service_is_given_the_time_that_it_drains(services):
    printed = run(built("switchboard"), "config", "print").ok().out
    for name in SERVICES:
        section = name.split("-")[0]
        drain_ms = int(re.search(rf"^\[{section}\].*?^drain_ms = (\d+)", printed, re.MULTILINE | re.DOTALL)[1])
        reserve_s = int(services[name]["stop_grace_period"].removesuffix("s")) - drain_ms / 1_000
        assert 5 <= reserve_s < 7


def test_everybody_is_asked_how_it_is(services):
    asked = {name: it["healthcheck"]["test"] for name, it in services.items() if name in RUN}
    (command,) = re.findall(r"health checks; the services' is `([a-z ]+)`", README)
    assert {name for name, test in asked.items() if test == ["CMD", *command.split()]} == set(SERVICES)
    assert set(asked) == set(RUN)


def test_the_image_is_the_one_that_is_built(services):
    version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    assert {services[name]["image"] for name in [*SERVICES, "demo", "operator"]} == {f"localhost/switchboard:{version}"}


def test_every_address_is_listened_on_and_let_through(services):
    sections = {setting.split(".")[0] for setting in any_ports() if not setting.endswith("tls_listen")} - {"admin"}
    of_api, of_ingress = {"api"}, sections - {"api"}
    for name, listening in {"ingress-1": of_ingress, "ingress-2": of_ingress, "api-1": of_api, "api-2": of_api}.items():
        env = services[name]["environment"]
        listens = {env[f"SWITCHBOARD_{section.upper()}__LISTEN"].split(":")[1] for section in listening}
        assert {port.removesuffix("/udp").split(":")[2] for port in services[name]["ports"]} == listens


def test_prometheus_is_told_of_everybody():
    file = ROOT / "deploy" / "prometheus" / "prometheus.yaml"
    run("promtool", "check", "config", file).ok()
    jobs = yaml.safe_load(file.read_text())["scrape_configs"]
    targets = [target for job in jobs for static in job["static_configs"] for target in static["targets"]]
    assert sorted(targets) == sorted(f"{name}:9100" for name in SERVICES)


def test_grafana_finds_prometheus_and_the_boards(services):
    mounts = dict(reversed(volume.removesuffix(":ro").split(":")) for volume in services["grafana"]["volumes"])
    (source,) = provisioned(mounts, "datasources")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = provisioned(mounts, "dashboards")["providers"]
    folder = provider["options"]["path"]
    boards = {f"{folder}/{it.name}" for it in (FOLDER / mounts[folder]).glob("*.json")}
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in boards


def provisioned(mounts: dict[str, str], kind: str) -> dict:
    return yaml.safe_load((FOLDER / mounts[f"/etc/grafana/provisioning/{kind}/switchboard.yaml"]).read_text())


def test_devices_call_each_other_through_both_nodes(system):
    here = {"HTTP_HOST": system.address, "HTTP_PORT": "8080", "MQTT_HOST": system.address, "MQTT_PORT": "1883"}
    there = here | {"HTTP_PORT": "8081", "MQTT_PORT": "1884", "NODE_PATH": str(MQTTJS)}
    for env in (here, there):
        until("the devices are listed", lambda env=env: said("mosquitto/get-devices.sh", env) == OTHERS)
        assert said("http/get-devices.sh", env) == OTHERS
        assert said("mosquitto/send-msg.sh", env) == AWAY
    emulator = Process("emulator", [tool("node"), EXAMPLES / "mqttjs" / "emulator.js"], None, env=there)
    try:
        emulator.wait_for_line("Waiting for calls", lambda line: "Waiting for calls" in line, stream="out")
        assert said("mosquitto/send-msg.sh", here) == OK
        assert said("http/send-msg.sh", here) == OK
    finally:
        emulator.stop()
    coap = run(EXAMPLES / "coap" / "get-devices.sh", env={"COAP_HOST": system.address, "COAP_PORT": "5684"})
    assert json.loads(coap.ok().out) == OTHERS


def said(script: str, env: dict[str, str]) -> object:
    ran = run(EXAMPLES / script, env=env)
    return json.loads(ran.out) if ran.out else ran.err


def test_an_operator_sees_the_devices(system):
    listed = system.compose("--profile", "operator", "run", "--rm", "-T", "operator", "device", "list")
    assert "Test Device A1" in listed.ok().out


def test_the_servers_are_one_cluster(system):
    for server in SERVERS:
        jetstream = json.loads(system.podman("exec", system.container(server), "wget", "-q", "-O-", "http://127.0.0.1:8222/jsz").ok().out)
        assert jetstream["meta_cluster"]["cluster_size"] == 3
        assert jetstream["streams"] == len(["devices", "policies", "claims", "seen", "keys", "audit"])
        assert "iolation" not in system.logs(server)


def test_a_stranger_is_no_server(system):
    hello = 'CONNECT {"name":"stranger","cluster":"switchboard","protocol":1}\r\nPING\r\n'
    # By its address: podman's names go away for a while when containers come and go.
    inspected = json.loads(system.podman("inspect", system.container("nats-1")).ok().out)[0]
    (network,) = inspected["NetworkSettings"]["Networks"].values()
    listen = ["exec", "--interactive", system.container("nats-2"), "busybox", "nc", network["IPAddress"], "6222"]

    def is_refused() -> bool:
        answer = run(*system.podman.command, *listen, stdin=hello)
        print(answer)
        return "Authorization Violation" in answer.out

    until("it is refused", is_refused)


def test_the_health_checks_are_content(system):
    for name in [*SERVERS, *SERVICES, "prometheus"]:
        until(f"{name} is healthy", lambda name=name: system.podman("healthcheck", "run", system.container(name)).code == 0)


def test_prometheus_scrapes_everybody(system):
    def up() -> set[str]:
        url = f"http://{system.address}:9090/api/v1/query?" + urllib.parse.urlencode({"query": "up == 1"})
        with urllib.request.urlopen(url, timeout=10) as answer:
            return {it["metric"]["instance"] for it in json.load(answer)["data"]["result"]}

    until("everybody is scraped", lambda: up() == {f"{name}:9100" for name in SERVICES})


def test_nobody_has_rights(system):
    for name in RUN:
        facts = json.loads(system.podman("inspect", system.container(name)).ok().out)[0]
        assert facts["HostConfig"]["ReadonlyRootfs"], name
        assert facts["EffectiveCaps"] in (None, []), name
        assert "no-new-privileges" in " ".join(facts["HostConfig"]["SecurityOpt"]), name


def test_everybody_drains(system):
    """The last of all: afterwards nobody runs."""
    began = time.monotonic()
    system.compose("stop").ok()
    print(f"stopped in {time.monotonic() - began:.1f} s")
    ended = {line.split()[0]: line for line in system.podman("ps", "--all", "--format", "{{.Names}} {{.ExitCode}}").ok().out.splitlines()}
    for name in [*SERVICES, *SERVERS]:
        assert ended[system.container(name)].endswith(" 0"), system.logs(name)[-2_000:]
