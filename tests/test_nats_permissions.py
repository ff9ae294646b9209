"""What can each service's NATS user do, and what not? The configuration of deploy/nats, on a real server."""

import json
import secrets
from pathlib import Path

import pytest
from harness import said
from harness.accounts import TOKENS
from harness.cluster import Cluster
from harness.devices import CoapDevice, HttpDevice, PahoV5
from harness.devices.device import echo
from harness.nats_server import NatsServer
from harness.programs import built
from harness.raw_nats import RawNats
from harness.waiting import until

CONFIGURATION = Path(__file__).parent.parent / "deploy/nats/switchboard.conf"
USERS = ["ingress", "authorizer", "router", "operator", "listener"]
PASSWORDS = {user: f"of-{user}-{secrets.token_hex(8)}" for user in USERS}
NODE = "swb.node.0123456789abcdef"
INBOX = "swb.reply.0123456789abcdef.1"
DEVICE = "aa435e80-9fce-11e6-8080-808080808080"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    env = {f"SWITCHBOARD_{user.upper()}_PASSWORD": password for user, password in PASSWORDS.items()}
    TOKENS.update(PASSWORDS.values())

    def launch(program):
        user = program.removeprefix("switchboard-")
        return [built(program), "--set", f"nats.user={user}", "--set", f"nats.password={PASSWORDS[user]}"]

    cluster = Cluster(
        tmp_path_factory.mktemp("cluster"),
        nodes=2,
        authorizers=2,
        routers=2,
        nats=lambda folder, logs: NatsServer(folder, logs, "--config", str(CONFIGURATION), env=env),
        launch=launch,
        operator={"SWITCHBOARD_NATS__USER": "operator", "SWITCHBOARD_NATS__PASSWORD": PASSWORDS["operator"]},
    )
    yield cluster
    cluster.stop()


@pytest.fixture
def nats(cluster):
    opened = []

    def connect(user):
        opened.append(RawNats(cluster.nats.url, user, PASSWORDS[user]))
        assert opened[-1].refused is None
        return opened[-1]

    yield connect
    for it in opened:
        it.__exit__()


def violations(cluster):
    return [line for line in cluster.nats.process.err.splitlines() if "iolation" in line]


def test_the_services_need_no_more(cluster, device):
    before = len(violations(cluster))
    family = cluster.accounts.family()
    here, there = cluster.nodes
    kinds = [PahoV5, HttpDevice, CoapDevice]
    for kind, target_identity in zip(kinds, (family.b, family.c, family.b), strict=True):
        target = device(kind, target_identity).connect(there).become_callable(echo)
        caller = device(PahoV5, family.a).connect(here)
        assert family.c.id in caller.get_devices({"online": True})
        assert caller.send_msg(target_identity, "1").text() == "1"
        assert caller.send_msg(target_identity, "1", oneway=True).text() == "null"
        target.close()
        caller.close()
    caller = device(PahoV5, family.a).connect(here)
    until("the target is away", lambda: caller.send_msg(family.b, "2", timeout=2_000).text() == said.OFFLINE)
    caller.publish("v1/devices/me/telemetry", '{"t":1}')

    # An answer at another node than the poll.
    poller, answers = HttpDevice(family.b).connect(here), HttpDevice(family.b).connect(there)
    poller.request("GET", "rpc?timeout=1")
    answer = caller.send_msg(family.b, "1")
    number = json.loads(poller.request("GET", "rpc")[1])["id"]
    assert answers.request("POST", f"rpc/{number}", '"there"')[0] == 200
    assert answer.text() == '"there"'

    # A newer session on another node, and a call by the command.
    older = device(PahoV5, family.b).connect(here).become_callable(echo)
    device(PahoV5, family.b).connect(there).become_callable(echo)
    until("the older session has ended", older.ended.is_set)
    called = cluster.accounts.cli("call", "--from", family.a.name, "--to", family.b.name, "3")
    assert called.ok().out.strip() == "3"

    # A rotated token; a router that starts later; NATS that comes back without its memory.
    cluster.accounts.cli("device", "rotate-token", family.a.name, "--yes").ok()
    until("the caller's session has ended", caller.ended.is_set)
    cluster.routers[0].term()
    cluster.routers[0].restart()
    third = device(PahoV5, family.c).connect(here)
    assert third.send_msg(family.b, "4").text() == "4"
    assert violations(cluster)[before:] == []
    cluster.nats.restart()
    until("calls are answered again", lambda: third.send_msg(family.b, "5", timeout=2_000).text() == "5", within_s=40)
    assert violations(cluster) == []


def test_who_has_no_password_is_nobody(cluster):
    with RawNats(cluster.nats.url, "ingress", "guess") as stranger:
        assert "Authorization" in stranger.refused


TAKING_FROM_THE_AUDIT = [
    f"$JS.API.STREAM.{operation}.swb_audit"
    for operation in ("DELETE", "PURGE", "UPDATE", "MSG.DELETE", "RESTORE", "LEADER.STEPDOWN", "PEER.REMOVE")
]

# What a user may do, and beside it what comes close and may not be done.
PUBLISH = {
    "ingress": (
        [
            *["swb.call", "swb.list", "swb.authenticate", f"swb.uplink.t.{DEVICE}.telemetry"],
            *["swb.claim", "swb.release", "swb.lease", "swb.compare", "swb.cancel", "swb.answer.7"],
        ],
        # A stolen node: no call without the authorizer's word, no word in another's name, no look at the registry.
        [
            *["swb.route", "swb.presence", NODE, INBOX, f"swb.bounce.1.{INBOX}", f"swb.audit.{DEVICE}.ingress"],
            *[f"swb.event.device.{DEVICE}", "swb.event.directory", f"$KV.swb_devices.device.{DEVICE}"],
            # Claims are the routers' to write, who is told of them theirs to say, and keys none of its business.
            *[f"$KV.swb_claims.{DEVICE}", "swb.event.takeover.0123456789abcdef", "swb.event.claims.0123456789abcdef"],
            *["swb.handover", "swb.beat", "$KV.swb_keys.tickets", "$JS.API.DIRECT.GET.KV_swb_keys.$KV.swb_keys.tickets"],
            *["$JS.API.STREAM.MSG.GET.KV_swb_keys", "$JS.API.CONSUMER.CREATE.KV_swb_keys.x"],
            *["$JS.API.STREAM.INFO.KV_swb_claims", "$JS.API.STREAM.MSG.GET.KV_swb_claims", "$JS.API.INFO"],
            *["$JS.API.STREAM.DELETE.KV_swb_claims", "$JS.API.STREAM.CREATE.EVERYTHING", "$JS.API.STREAM.NAMES"],
            *["$JS.API.CONSUMER.CREATE.KV_swb_claims.x", "$JS.API.CONSUMER.CREATE.KV_swb_devices.x"],
            *["$JS.API.DIRECT.GET.KV_swb_devices.x", "$JS.API.STREAM.MSG.GET.KV_swb_devices", "anything"],
        ],
    ),
    "authorizer": (
        [
            *["swb.route", "swb.presence", INBOX, f"swb.event.device.{DEVICE}", "$JS.API.STREAM.INFO.KV_swb_devices"],
            *["$KV.swb_devices.beat.7", "$KV.swb_keys.tickets", f"swb.audit.{DEVICE}.authorizer"],
            *["$JS.API.STREAM.INFO.swb_audit", "$JS.API.STREAM.MSG.GET.swb_audit"],
        ],
        [
            *[NODE, "swb.call", "swb.authenticate", "swb.uplink.t.d.telemetry", f"$KV.swb_claims.{DEVICE}", "swb.answer.7"],
            *[f"$KV.swb_devices.device.{DEVICE}", "$JS.API.STREAM.UPDATE.KV_swb_devices", "$JS.API.STREAM.DELETE.KV_swb_devices"],
            *["$JS.API.STREAM.PURGE.KV_swb_devices", "$JS.API.STREAM.CREATE.EVERYTHING", "anything"],
            *["swb.claim", "swb.lease", "swb.handover", "swb.beat", "$JS.API.STREAM.DELETE.KV_swb_keys"],
            # A record is neither written in another's name nor taken away, and what was done is not read.
            *[f"swb.audit.{DEVICE}.operator", f"swb.audit.{DEVICE}", *TAKING_FROM_THE_AUDIT, "$JS.API.DIRECT.GET.swb_audit"],
        ],
    ),
    "router": (
        [NODE, INBOX, f"$KV.swb_claims.{DEVICE}", "swb.event.takeover.0123456789abcdef", "swb.handover", "swb.beat"],
        [
            *["swb.route", "swb.presence", "swb.call", "swb.authenticate", "swb.uplink.t.d.telemetry", "swb.answer.7"],
            *["swb.claim", "swb.lease", "$JS.API.STREAM.DELETE.KV_swb_keys", "$KV.swb_devices.beat.7"],
            *[f"swb.event.device.{DEVICE}", f"$KV.swb_devices.device.{DEVICE}"],
            *["$JS.API.STREAM.INFO.KV_swb_devices", "$JS.API.DIRECT.GET.KV_swb_devices.x", "anything"],
        ],
    ),
    "operator": (
        [
            *[f"$KV.swb_devices.device.{DEVICE}", "swb.call", "swb.list", "swb.authenticate"],
            *[f"swb.audit.{DEVICE}.operator", "$JS.API.DIRECT.GET.swb_audit"],
        ],
        [
            *[f"swb.audit.{DEVICE}.authorizer", f"swb.audit.{DEVICE}", *TAKING_FROM_THE_AUDIT],
            *["swb.route", "swb.presence", NODE, INBOX, "swb.claim", f"$KV.swb_claims.{DEVICE}", "$KV.swb_keys.tickets", "swb.answer.7"],
            *["$JS.API.STREAM.DELETE.KV_swb_devices", "$JS.API.STREAM.PURGE.KV_swb_devices", "anything"],
        ],
    ),
    "listener": ([], ["swb.call", "swb.route", "swb.answer.7", NODE, INBOX, "swb.uplink.t.d.telemetry", "$JS.API.INFO", "anything"]),
}

# Subject and queue group.
SUBSCRIBE = {
    "ingress": (
        [(NODE, ""), ("swb.reply.0123456789abcdef.>", ""), ("swb.event.device.*", ""), ("swb.event.claims.*", ""), ("swb.answer.7", ""), ("swb.beat", "")],
        [
            *[("swb.call", ""), ("swb.call", "authorizer"), ("swb.authenticate", ""), ("swb.authenticate", "authorizer")],
            *[("swb.route", ""), ("swb.route", "router"), ("swb.uplink.>", ""), ("swb.>", ""), (">", "")],
            *[("$KV.swb_devices.>", ""), ("$KV.swb_claims.>", ""), ("swb.feed.*.>", ""), ("$JS.>", "")],
            *[("swb.claim", "router"), ("swb.claim", ""), ("swb.lease", ""), ("swb.cancel", ""), ("$KV.swb_keys.>", "")],
        ],
    ),
    "authorizer": (
        [("swb.call", "authorizer"), ("swb.authenticate", "authorizer"), ("swb.reply.0123456789abcdef.>", "")],
        # Nothing is overheard: who takes a question takes it out of the queue.
        [
            *[("swb.call", ""), ("swb.call", "spy"), ("swb.authenticate", ""), ("swb.route", "router"), ("swb.route", "")],
            *[(NODE, ""), ("swb.answer.7", ""), ("swb.uplink.>", ""), ("swb.>", ""), (">", "")],
        ],
    ),
    "router": (
        [
            *[("swb.route", "router"), ("swb.presence", "router"), ("swb.feed.0123456789abcdef.>", "")],
            *[("swb.claim", "router"), ("swb.handover", "router"), ("swb.lease", ""), ("swb.cancel", ""), ("swb.beat", "")],
        ],
        [
            *[("swb.route", ""), ("swb.route", "spy"), ("swb.call", "authorizer"), ("swb.call", ""), (NODE, ""), ("swb.answer.7", "")],
            # Tickets go by in claims: nobody overhears them.
            *[("swb.claim", ""), ("swb.handover", ""), ("swb.release", "spy")],
            *[("swb.authenticate", "authorizer"), ("swb.uplink.>", ""), ("swb.>", ""), (">", "")],
        ],
    ),
    "operator": ([("swb.reply.0123456789abcdef.>", "")], [("swb.call", ""), ("swb.route", ""), (NODE, ""), ("swb.uplink.>", "")]),
    "listener": ([("swb.uplink.>", ""), ("swb.event.session.>", "")], [("swb.>", ""), ("swb.reply.>", ""), (NODE, ""), ("swb.call", "")]),
}


@pytest.mark.parametrize("user", USERS)
def test_what_a_user_may_publish(nats, user):
    allowed, forbidden = PUBLISH[user]
    connection = nats(user)
    assert {subject: connection.publish(subject) for subject in allowed} == dict.fromkeys(allowed)
    refused = {subject: connection.publish(subject) for subject in forbidden}
    assert [subject for subject, why in refused.items() if not why or "Permissions Violation" not in why] == []


@pytest.mark.parametrize("user", USERS)
def test_what_a_user_may_subscribe_to(nats, user):
    allowed, forbidden = SUBSCRIBE[user]
    connection = nats(user)
    assert {of: connection.subscribe(*of) for of in allowed} == dict.fromkeys(allowed)
    refused = {of: connection.subscribe(*of) for of in forbidden}
    assert [of for of, why in refused.items() if not why or "Permissions Violation" not in why] == []
