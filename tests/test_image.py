"""Is the container image what an operator runs? Built as `./taskw image` builds it, run by podman without a right to write."""

import io
import json
import os
import re
import secrets
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import said
from harness.accounts import TOKENS, Accounts
from harness.authority import Authority
from harness.chart import render
from harness.cluster import SETTINGS, Cluster
from harness.containers import Podman
from harness.devices import PROTOCOLS, PahoV5
from harness.devices.device import answering
from harness.nats_server import NatsServer
from harness.pods import Pods
from harness.ports import ANY
from harness.processes import Process, run
from harness.programs import ROOT, TOOLS, tool
from harness.waiting import until

# The first test waits until the programs are built for the image, on whatever machine.
pytestmark = pytest.mark.timeout(1800)

IMAGE = "localhost/switchboard:test"
SERVICES = ["ingress", "authorizer", "router", "identity", "api", "node"]
PROGRAMS = ["switchboard", *(f"switchboard-{service}" for service in SERVICES)]
VERSION = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
# What a router says once it has read the buckets of its NATS.
CONNECTED = "the claims are loaded"
NAME_SERVER = ROOT / "tests" / "harness" / "name_server.py"
BUILT = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "image"


@pytest.fixture(scope="module")
def podman():
    it = Podman()
    yield it
    it.close()


@pytest.fixture(scope="module")
def revision() -> str:
    return run("git", "-C", ROOT, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*").ok().out.strip()


@pytest.fixture(scope="module")
def image(podman) -> str:
    """Of the programs that the tests are about, so that little is built for it."""
    build(podman)
    return IMAGE


def build(podman) -> Path:
    env = podman.env | {"PROFILE": "dev", "TAG": IMAGE}
    run(ROOT / "deploy" / "image" / "build", env=env, within_s=1_500).ok()
    return BUILT / f"switchboard-{VERSION}.oci.tar"


@pytest.fixture(scope="module")
def files(image) -> dict[str, tarfile.TarInfo]:
    """What is in the image: path to entry, folders left out."""
    with layer() as it:
        return {entry.name: entry for entry in it if not entry.isdir()}


@pytest.fixture(scope="module")
def containers(podman, image, tmp_path_factory):
    """A system whose every service is a container."""
    cluster = Cluster(tmp_path_factory.mktemp("containers"), nodes=2, launch=lambda it: [*podman.launch(image), it])
    yield cluster
    cluster.stop()


@pytest.fixture
def in_container(podman, image):
    """Runs a command in a container, to its end."""
    return lambda *command: run(*podman.launch(image), *command)


def test_nothing_is_in_it_but_the_programs(files):
    assert sorted(files) == sorted(
        [
            *(f"usr/bin/{program}" for program in PROGRAMS),
            *("etc/group", "etc/nsswitch.conf", "etc/passwd", "etc/ssl/certs/ca-certificates.crt"),
            *("usr/share/doc/switchboard/LICENSE", "usr/share/doc/switchboard/sbom.cdx.json"),
        ]
    )
    for path, entry in files.items():
        assert (entry.uid, entry.gid) == (0, 0), path
        assert entry.mode & 0o7777 == (0o755 if path.startswith("usr/bin/") else 0o644), path


def test_there_is_no_shell_in_it(in_container):
    assert in_container("sh", "-c", "true").code == 127


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_says_its_version(in_container, revision, program):
    assert in_container(program, "--version").ok().out.strip() == f"{program} {VERSION} ({revision})"


def test_every_service_measures_its_version(containers, revision):
    for service in containers.services:
        assert service.admin.value("switchboard_build_info", version=f"{VERSION} ({revision})") == 1


def test_without_a_command_it_says_what_there_is(podman, image):
    assert "Usage: switchboard" in run(*podman.launch(image)).ok().out


def test_its_labels_say_what_it_is(podman, image, revision):
    inspected = podman.inspect(image)
    assert inspected["Config"]["Labels"] == {
        "org.opencontainers.image.title": "switchboard",
        "org.opencontainers.image.description": (
            "IoT devices find and call each other: ingress, authorizer, router and the command line"
        ),
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": VERSION,
        "org.opencontainers.image.revision": revision,
        "org.opencontainers.image.created": inspected["Created"],
    }
    assert inspected["Config"]["User"] == "65532:65532"
    assert "Entrypoint" not in inspected["Config"]


def test_the_same_commit_gives_the_same_image(podman, image):
    digest = podman.inspect(image)["Digest"]
    build(podman)
    assert podman.inspect(image)["Digest"] == digest


def test_it_is_small(files):
    # Programs that were built for tests; those for use are half as large.
    assert sum(entry.size for entry in files.values()) < 260 << 20
    with layer() as it:
        for program in PROGRAMS:
            assert b".symtab" not in it.extractfile(f"usr/bin/{program}").read(), "its symbols are for nobody"


@pytest.mark.parametrize("kind", PROTOCOLS, ids=lambda kind: kind.protocol)
def test_the_seed_scenario(containers, device, kind):
    play_seed_scenario(device, kind, containers.accounts.family(), *containers.nodes)


def test_a_service_has_no_rights(podman, containers):
    ids = podman("ps", "--quiet").ok().out.split()
    assert len(ids) == len(containers.services)
    for id in ids:
        assert podman("top", id, "user", "capeff", "capbnd", "seccomp").ok().out.split("\n")[1].split() == [
            *("switchboard", "none", "none", "filter")
        ]


def test_sigterm_drains(podman, image, new_cluster, device):
    cluster = new_cluster(launch=lambda it: [*podman.launch(image), it])
    family = cluster.accounts.family()
    target = device(PahoV5, family.b).connect(cluster.nodes[0]).become_callable()
    answer = device(PahoV5, family.a).connect(cluster.nodes[0]).send_msg(family.b, "1")
    call = target.next_call()
    node, admin = cluster.nodes[0], cluster.nodes[0].admin
    node.process.term()
    until("it is unready", lambda: admin.get("/readyz")[0] != 200)
    call.answer('"in time"')
    assert answer.text() == '"in time"'
    for service in cluster.services:
        assert service.term() == 0, service.process.err


@pytest.fixture
def started():
    """Ends after the test what is given to it, the last first."""
    with ExitStack() as stack:

        def started(it):
            stack.callback(it.stop)
            return it

        yield started


@pytest.fixture
def router(started, podman, image):
    """Starts a router in a container."""

    def router(nats_url, *flags, network="host"):
        command = [*podman.launch(image, *flags, network=network), "switchboard-router", "--nats", nats_url, "--admin", ANY]
        return started(Process("router", command, None))

    return router


def test_nats_is_found_by_a_name_of_the_hosts_file(started, router, tmp_path):
    nats = started(NatsServer(tmp_path / "nats", tmp_path))
    router(f"nats://nats.example:{nats.port}", "--add-host=nats.example:127.0.0.1").wait_for_message(CONNECTED)


def test_nats_is_found_by_a_name_of_the_dns(started, router, podman, tmp_path):
    """In a network of the container's own, where the tests may be the name server."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\nsearch example\n")
    flags = [f"--volume={tmp_path}/resolv.conf:/etc/resolv.conf:ro", f"--pidfile={tmp_path}/pid"]
    waiting = router("nats://nats:4222", *flags, network="none")
    waiting.wait_for_message("starting")
    beside = podman.beside(int((tmp_path / "pid").read_text()))
    server = [tool("nats-server"), "--addr=127.0.0.1", "--jetstream", f"--store_dir={tmp_path}/store"]
    started(Process("nats-server", [*beside, *server], None))
    started(Process("name-server", [*beside, sys.executable, NAME_SERVER, "nats.example"], None))
    waiting.wait_for_message(CONNECTED)


def test_nats_is_believed_by_the_authorities_of_the_image(started, router, tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("nats")
    nats = started(NatsServer(tmp_path / "nats", tmp_path, "--tls", f"--tlscert={certificate}", f"--tlskey={key}"))
    url = f"tls://127.0.0.1:{nats.port}"
    router(url).wait_for_line("UnknownIssuer", lambda line: "UnknownIssuer" in line)
    ours = f"--volume={authority.certificate}:/etc/ssl/certs/ca-certificates.crt:ro"
    router(url, ours).wait_for_message(CONNECTED)


@pytest.fixture(scope="module")
def pods(podman, image, tmp_path_factory):
    """The chart's pods, at a NATS that knows each service by its password."""
    folder = tmp_path_factory.mktemp("pods")
    passwords = {user: f"of-{user}-{secrets.token_hex(8)}" for user in ("ingress", "authorizer", "router")}
    TOKENS.update(passwords.values())
    users = [f"{{user: {user}, password: {password}}}" for user, password in passwords.items()]
    text = "authorization {{ users: [\n{}\n{{user: tests, password: none}}\n] }}\nno_auth_user: tests\n"
    (folder / "nats.conf").write_text(text.format("\n".join(users)))
    nats = NatsServer(folder / "nats", folder / "logs", "--config", str(folder / "nats.conf"))
    values = {
        "image": dict(zip(("repository", "tag"), image.split(":"), strict=True)),
        "config": {"nats": {"replicas": 1}, "http": {"poll_grace_ms": 1000}, "log": {"level": SETTINGS["log.level"]}},
        "nats": {"url": nats.url, "passwordsSecret": "nats-users", "storeUsers": dict.fromkeys(("authorizer", "router", "operator"), "")},
    }
    pods = Pods(podman, render(values), folder)

    def wait_heard(count: int) -> None:
        gauge = "switchboard_authorizer_registry_devices"
        until(f"it knows {count} devices", lambda: pods.services["authorizer"].admin.value(gauge) == count)

    try:
        pods.play({"nats-users": passwords})
        yield pods, Accounts(nats.url, folder / "accounts", wait_heard)
    finally:
        pods.close()
        nats.stop()


def test_the_pods_of_the_chart(pods, device):
    pods, accounts = pods
    assert set(pods.services) == {"ingress", "authorizer", "router"}
    for pod in pods.services.values():
        pod.wait_ready()
    for kind in PROTOCOLS:
        play_seed_scenario(device, kind, accounts.family(), pods.node, pods.node)
    for pod in pods.services.values():
        assert pod.end() == 0, pod.log.err


def test_the_bill_of_materials_names_what_is_linked_in(image):
    with layer() as it:
        text = it.extractfile("usr/share/doc/switchboard/sbom.cdx.json").read()
    assert text == (BUILT / f"switchboard-{VERSION}.cdx.json").read_bytes()
    validated = "import sys; from cyclonedx.schema import SchemaVersion as S; from cyclonedx.validation.json import *; "
    validated += "sys.exit(JsonStrictValidator(S.V1_6).validate_str(sys.stdin.read()))"
    run(sys.executable, "-c", validated, env={"PYTHONPATH": str(TOOLS.parents[1] / "sbom")}, stdin=text.decode()).ok()
    components = json.loads(text)["components"]
    crates = {f"{it['name']} v{it['version']}" for it in components if it["bom-ref"].startswith("pkg:cargo/")}
    packages = [f"--package={program}" for program in PROGRAMS]
    tree = run("cargo", "tree", "--locked", "--edges=normal,no-proc-macro", "--prefix=none", "--format={p}", *packages).ok()
    assert crates == {" ".join(line.split()[:2]) for line in tree.out.splitlines() if line}
    assert {"rust-std", "glibc", "ca-certificates"} <= {it["name"] for it in components}


def play_seed_scenario(device, kind, family, node, other):
    caller = device(kind, family.a).connect(node)
    assert [it["id"] for it in json.loads(caller.get_devices())] == [family.b.id, family.c.id]
    assert caller.send_msg(family.b, "1").text() == said.OFFLINE
    device(kind, family.b).connect(other).become_callable(answering('{"status":"ok"}'))
    assert caller.send_msg(family.b, '{"param1":"value1"}').text() == '{"status":"ok"}'


def layer() -> tarfile.TarFile:
    """The one layer of the image that was built last."""
    with tarfile.open(BUILT / f"switchboard-{VERSION}.oci.tar") as archive:

        def blob(digest: str) -> bytes:
            return archive.extractfile("blobs/" + digest.replace(":", "/")).read()

        index = json.load(archive.extractfile("index.json"))
        (only,) = json.loads(blob(index["manifests"][0]["digest"]))["layers"]
        return tarfile.open(fileobj=io.BytesIO(blob(only["digest"])))
