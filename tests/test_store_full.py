"""What happens when JetStream has no room? Whoever writes is told so, readiness says it, and nothing need be restarted."""

import json

import pytest
from harness.apps import add_app, call
from harness.devices import PahoV5
from harness.devices.paho import REQUESTS
from harness.nats_server import NatsServer
from harness.processes import run
from harness.programs import built
from harness.raw_http import RawHttp
from harness.raw_nats import RawNats
from harness.waiting import until

ROOM_BYTES = 4 * 1024 * 1024
AUDIT = {f"audit.max_{of}bytes": str(1024 * 1024) for of in ("", "denied_")}


@pytest.fixture
def cluster(new_cluster, tmp_path):
    config = tmp_path / "small.conf"
    config.write_text(f"jetstream {{ max_file_store: {ROOM_BYTES} }}\n")
    operator = {"SWITCHBOARD_AUDIT__MAX_BYTES": AUDIT["audit.max_bytes"]}
    return new_cluster(apis=1, settings=AUDIT | {"api.idempotency_max_bytes": str(1024 * 1024)}, operator=operator, nats=lambda folder, logs: NatsServer(folder, logs, "--config", str(config)))


def add_tenant(cluster, name):
    flags = [part for setting, value in AUDIT.items() for part in ("--set", f"{setting}={value}")]
    return run(built("switchboard"), "tenant", "add", name, "--nats", cluster.nats.url, *flags)


def test_a_full_store_is_told_and_writes_go_on_when_there_is_room(cluster, device):
    family, app = cluster.accounts.family(), add_app(cluster.accounts)

    def keyed():
        with RawHttp(cluster.apis[0].port) as http:
            return call(http, app, family.a.id, Idempotency_Key="x")

    assert keyed().json["outcome"] == "offline"
    target, deaf = (device(PahoV5, it).connect(cluster.nodes[0]) for it in (family.b, family.c))
    authorizer, router = cluster.authorizers[0], cluster.routers[0]
    # Without users of its own the server asks nobody who he is.
    with RawNats(cluster.nats.url, "", "") as nats:
        said = lambda subject, body: json.loads(nats.ask(subject, body).body)  # noqa: E731
        hog = {"name": "hog", "subjects": ["hog"], "storage": "file"}
        assert "error" not in said("$JS.API.STREAM.CREATE.hog", json.dumps(hog))
        while "error" not in said("hog", "x" * 100_000):
            pass
        # No call without its record.
        unrecorded = keyed()
        assert (unrecorded.status, unrecorded.json["seen"]) == (503, "never"), unrecorded
        assert "full" in unrecorded.json["detail"], unrecorded
        refused = add_tenant(cluster, "Late")
        assert refused.code == 1 and "the store is full" in refused.err, refused.err
        assert "nothing was changed" in refused.err and "max_file_store" in refused.err, refused.err
        assert target.subscribe(REQUESTS + "+") >= 0x80
        assert deaf.subscribe(REQUESTS + "+") >= 0x80
        for service in (authorizer, router):
            until(f"{service.name} says so", lambda it=service: "the store is full" in it.admin.get("/readyz")[1])
            assert service.admin.get("/readyz")[0] == 503
        assert "the registry takes no beat" in authorizer.process.err
        assert said("$JS.API.STREAM.PURGE.hog", "")["success"]
    until("devices are callable again", lambda: target.subscribe(REQUESTS + "+") == target.qos)
    # A client that does not look at what its SUBSCRIBE was answered is sent away, to ask anew.
    assert deaf.ended.wait(30) and deaf.disconnect_reason.value == 0x8B, deaf.disconnect_reason
    back = device(PahoV5, family.c).connect(cluster.nodes[0])
    assert back.subscribe(REQUESTS + "+") == back.qos
    assert not target.ended.is_set()
    assert cluster.nodes[0].admin.value("switchboard_shed_total", reason="uncalled") == 1
    for service in cluster.services:
        service.wait_ready()
    assert keyed().json["outcome"] == "offline"
    add_tenant(cluster, "Late").ok()
