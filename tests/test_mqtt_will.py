"""What becomes of a client's last words? They are handed up where they are telemetry or attributes, and nowhere else."""

import json
import queue

import pytest
from harness.accounts import TOKENS
from harness.nats_listener import NatsListener
from harness.raw_mqtt import CONNACK, connect

VERSIONS = pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5"])
TELEMETRY = "v1/devices/me/telemetry"
ATTRIBUTES = "v1/devices/me/attributes"


@pytest.fixture
def heard(shared_cluster, family):
    with NatsListener(shared_cluster.nats.url, f"swb.uplink.*.{family.a.id}.*") as listener:
        yield listener


@pytest.fixture
def client(shared_cluster, family, raw):
    def make(version, will=(ATTRIBUTES, '{"online":false}'), **options):
        made = raw(shared_cluster.nodes[0].mqtt_port, version)
        made.send(connect(version, family.a.token, will=will, **options))
        made.ack = made.expect(CONNACK)
        return made

    return make


def silent(heard, client):
    """Nothing of a will: what is said behind it comes first."""
    with pytest.raises(queue.Empty):
        heard.next(within_s=0.3)


@VERSIONS
@pytest.mark.parametrize("topic", [TELEMETRY, ATTRIBUTES])
@pytest.mark.parametrize("qos", [0, 1])
def test_a_connection_that_breaks_has_its_will_handed_up(client, heard, version, topic, qos):
    it = client(version, will=(topic, '{"gone":true}'), will_qos=qos)
    assert it.ack.code == 0
    it.socket.close()
    subject, payload = heard.next()
    assert (subject.rsplit(".", 1)[1], payload) == (topic.rsplit("/", 1)[1], b'{"gone":true}')
    silent(heard, it)


@VERSIONS
def test_who_breaks_the_protocol_or_falls_silent_leaves_a_will(client, heard, version):
    breaks = client(version)
    breaks.send(b"\x00\x00")
    assert heard.next()[1] == b'{"online":false}'
    client(version, keep_alive_s=1)
    assert heard.next()[1] == b'{"online":false}'


@VERSIONS
def test_who_says_goodbye_takes_it_along(client, heard, version):
    for reason in (None, 0) if version == 5 else (None,):
        it = client(version)
        it.disconnect(reason)
        it.expect_closed()
    silent(heard, it)


def test_a_v5_client_may_leave_it_behind(client, heard):
    it = client(5, will_properties={"will_delay": 3600})
    it.disconnect(0x04)
    # No session outlives its connection, and no delay does either.
    assert heard.next()[1] == b'{"online":false}'


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"will": ("elsewhere", "{}")}, 0x90),
        ({"will": ("v1/devices/me/rpc/request/1", "{}")}, 0x90),
        ({"will": ("v1/devices/me/rpc/response/1", "{}")}, 0x90),
        ({"will": ("v1/+/me", "{}")}, 0x90),
        ({"will": (ATTRIBUTES, "gone")}, 0x99),
        ({"will_qos": 2}, 0x9B),
        ({"will_retain": True}, 0x9A),
    ],
)
def test_a_v5_client_is_told_which_wills_are_not_served(client, heard, options, code):
    it = client(5, **options)
    assert it.ack.code == code
    it.expect_closed()
    silent(heard, it)


@pytest.mark.parametrize("will", [("elsewhere", "{}"), (ATTRIBUTES, "gone")])
def test_3_1_1_which_cannot_be_told_is_counted(shared_cluster, client, heard, will):
    admin = shared_cluster.nodes[0].admin
    before = admin.value("switchboard_messages_dropped_total", reason="will")
    it = client(4, will=will)
    assert it.ack.code == 0
    it.socket.close()
    silent(heard, it)
    assert admin.value("switchboard_messages_dropped_total", reason="will") == before + 1


def test_a_will_at_qos_2_or_retained_is_handed_up_over_3_1_1(client, heard):
    for options in ({"will_qos": 2}, {"will_retain": True}):
        client(4, **options).socket.close()
        assert heard.next()[1] == b'{"online":false}'


def test_a_device_that_is_no_longer_who_it_was_has_no_last_words(shared_cluster, family, client, heard):
    it = client(4)
    printed = shared_cluster.accounts.cli("device", "rotate-token", family.a.id, "--yes", "--json").ok()
    TOKENS.add(json.loads(printed.out)["token"])
    it.expect_closed()
    silent(heard, it)
