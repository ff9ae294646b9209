"""Is NATS reached over TLS by one setting, and never without it then?"""

import shutil

import pytest
from harness.accounts import Accounts
from harness.authority import Authority
from harness.cluster import Cluster, Router
from harness.devices import PahoV5
from harness.devices.device import echo
from harness.nats_server import NatsServer
from harness.waiting import until


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def cluster(authority, tmp_path_factory):
    certificate, key = authority.issue("nats")
    ours = {"nats.tls_ca_file": str(authority.certificate)}
    cluster = Cluster(
        tmp_path_factory.mktemp("cluster"),
        nodes=2,
        settings=ours,
        operator={"SWITCHBOARD_NATS__TLS_CA_FILE": str(authority.certificate)},
        nats=lambda at, logs: NatsServer(at, logs, "--tls", f"--tlscert={certificate}", f"--tlskey={key}"),
    )
    yield cluster
    cluster.stop()


@pytest.fixture
def router(cluster):
    """A router that need not be ready."""
    made = []

    def start(nats, settings):
        made.append(Router(nats, cluster.logs, 9, settings, lambda program: cluster._launch(program)))
        return made[-1]

    yield start
    for it in made:
        it.term()


def says(router, *words):
    until(f"it says {words}", lambda: all(word in router.admin.get("/readyz")[1] for word in words))


def test_devices_call_each_other(cluster, device):
    family = cluster.accounts.family()
    here, there = cluster.nodes
    device(PahoV5, family.b).connect(there).become_callable(echo)
    caller = device(PahoV5, family.a).connect(here)
    assert caller.send_msg(family.b, "1").text() == "1"
    cluster.nats.restart()
    until("calls are answered again", lambda: caller.send_msg(family.b, "2", timeout=2_000).text() == "2", within_s=40)


def test_without_the_setting_strangers_certificates_are_refused(cluster, router):
    says(router(cluster.nats, {}), "UnknownIssuer")


def test_anothers_word_does_not_count(cluster, router, tmp_path):
    other = Authority(tmp_path)
    says(router(cluster.nats, {"nats.tls_ca_file": str(other.certificate)}), "certificate")


@pytest.mark.parametrize(("text", "why"), [(None, "No such file"), ("nonsense", "there is no certificate")])
def test_a_file_of_no_use_is_named(cluster, router, tmp_path, text, why):
    file = tmp_path / "ca.pem"
    if text:
        file.write_text(text)
    says(router(cluster.nats, {"nats.tls_ca_file": str(file)}), "nats.tls_ca_file", str(file), why)


def test_a_new_authority_needs_no_restart(router, tmp_path):
    """The server's certificate and the file of who vouches for it are replaced, one after the other."""
    files = [tmp_path / name for name in ("ca.pem", "nats.pem", "nats.key")]

    def of_another(name, files):
        (tmp_path / name).mkdir()
        authority = Authority(tmp_path / name)
        for file, source in zip(files, [authority.certificate, *authority.issue("nats")], strict=False):
            shutil.copy(source, file)
        return authority

    of_another("old", files)
    nats = NatsServer(tmp_path / "nats", tmp_path / "logs", "--tls", f"--tlscert={files[1]}", f"--tlskey={files[2]}")
    try:
        it = router(nats, {"nats.tls_ca_file": str(files[0])})
        it.wait_ready()
        new = of_another("new", [tmp_path / "unused.pem", *files[1:]])
        nats.restart()
        says(it, "NATS is not reachable")
        shutil.copy(new.certificate, files[0])
        it.wait_ready()
    finally:
        nats.stop()


def test_a_server_without_tls_is_none(authority, router, tmp_path):
    plain = NatsServer(tmp_path / "nats", tmp_path / "logs")
    try:
        says(router(plain, {"nats.tls_ca_file": str(authority.certificate)}), "cannot connect to NATS")
        accounts = Accounts(plain.url, tmp_path, lambda _: None, {"SWITCHBOARD_NATS__TLS_CA_FILE": str(authority.certificate)})
        assert accounts.cli("device", "list").code == 1
    finally:
        plain.stop()
