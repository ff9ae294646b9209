"""What can each service's NATS user do, and what not? The configuration of deploy/nats, on a real server."""

import json
import time

import pytest
from harness import said
from harness.accounts import TOKENS
from harness.apps import add_app, call
from harness.devices import CoapDevice, HttpDevice, PahoV5
from harness.devices.device import echo
from harness.hardened import USERS, Hardened
from harness.raw_http import RawHttp
from harness.raw_nats import RawNats
from harness.sse import Listener
from harness.waiting import until

NODE = "swb.node.0123456789abcdef"
OPERATE = ["swb.operate.0123456789abcdef", "swb.operate.all", "swb.instruct.ingress", "swb.instruct.api", "swb.instruct.authorizer", "swb.instruct.router"]
INSPECT = ["swb.inspect.ingress", "swb.inspect.api", "swb.inspect.authorizer", "swb.inspect.router"]
INBOX = "swb.reply.0123456789abcdef.1"
# The subject that NATS puts in an inbox's place for a question from another account.
BETWEEN = "_R_.abcdef.abcdef"
DEVICE = "aa435e80-9fce-11e6-8080-808080808080"
# An application's own, which no service may say.
APP_CALL = f"swb.app.{DEVICE}.{DEVICE}.call.{DEVICE}"


@pytest.fixture(scope="module")
def hardened(tmp_path_factory):
    hardened = Hardened(tmp_path_factory.mktemp("cluster"), nodes=2, authorizers=2, routers=2, apis=3, keeps=True)
    yield hardened
    hardened.cluster.stop()


@pytest.fixture
def nats(hardened):
    opened = []

    def connect(user):
        opened.append(hardened.connect(user))
        return opened[-1]

    yield connect
    for it in opened:
        it.__exit__()


def test_the_services_need_no_more(hardened, device):
    cluster, before = hardened.cluster, len(hardened.violations())
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

    # An application's call, and what it hears, at a copy that keeps the registry, too: of calls at all services.
    app = add_app(cluster.accounts, "--role", "observer")
    # Copies of the other account's are not among them.
    for api, calling, others in ((cluster.apis[0], cluster.apis[1], 1), (cluster.apis[2], cluster.apis[2], 2)):
        with Listener(api.port, "/v1/events?kinds=call", {"Authorization": app.bearer}) as listener, RawHttp(calling.port) as http:
            listener.until("live")
            assert call(http, app, family.b.id).json["outcome"] == "offline"
            caller.send_msg(family.b, "2", timeout=2_000)
            told = [listener.until("call", caller=by, outcome="offline") for by in ({"app": app.id}, {"device": family.a.id, "name": family.a.name})]
        with RawHttp(api.port) as http:
            shown = [http.ask("GET", f"/v1/calls/{it.data['callId']}?hops=true", Authorization=app.bearer).json for it in told]
        assert [it["hops"][0]["at"] for it in shown] == ["api", "caller"]
        # All but those that let nodes in, through which no call goes.
        assert [it["asked"] for it in shown] == [len(cluster.services) - len(cluster.identities) - others] * 2
    with Listener(cluster.apis[0].port, f"/v1/events?device={family.b.id}", {"Authorization": app.bearer}) as listener:
        assert [it["id"] for it in listener.until("snapshot").data["devices"]] == [family.b.id]
    with RawHttp(cluster.apis[0].port) as http:
        target = device(PahoV5, family.c).connect(there).become_callable(echo)
        assert call(http, app, family.c.id, {"params": 1}).body == "1"
        target.close()
        # Under a key; its answer comes late, and is read from the other copy.
        target = device(PahoV5, family.c).connect(there).become_callable()
        late = call(http, app, family.c.id, {"timeout": 200}, Idempotency_Key="x")
        assert call(http, app, family.c.id, {"timeout": 200}, Idempotency_Key="x").json == late.json
        target.next_call().answer('"late"')
        with RawHttp(cluster.apis[1].port) as other:
            path = f"/v1/calls/{late.json['callId']}"
            until("it is kept", lambda: other.ask("GET", path, Authorization=app.bearer).json.get("body") == "late")
        target.close()

    # Another one, of a copy that keeps the registry, too.
    keeper = add_app(cluster.accounts, "--role", "admin")
    with Listener(cluster.apis[2].port, f"/v1/events?device={family.b.id}", {"Authorization": keeper.bearer}) as listener:
        assert [it["id"] for it in listener.until("snapshot").data["devices"]] == [family.b.id]
    with RawHttp(cluster.apis[2].port) as http:
        kind = {"Content_Type": "application/json"}
        added = http.ask("POST", "/v1/devices", '{"name":"Kept"}', Authorization=keeper.bearer, **kind)
        assert added.status == 201, added
        assert http.ask("DELETE", f"/v1/devices/{added.json['id']}", Authorization=keeper.bearer).status == 204
        assert '"device.remove"' in http.ask("GET", "/v1/audit?kind=device.remove", Authorization=keeper.bearer).body
    TOKENS.add(added.json["token"])

    # A newer session on another node, and a call by the command.
    older = device(PahoV5, family.b).connect(here).become_callable(echo)
    device(PahoV5, family.b).connect(there).become_callable(echo)
    until("the older session has ended", older.ended.is_set)
    called = cluster.accounts.cli("call", "--from", family.a.name, "--to", family.b.name, "3")
    assert called.ok().out.strip() == "3"

    # Who is there, and how somebody was last, as the command has it.
    listed = json.loads(cluster.accounts.cli("device", "list", "--online", "--json").ok().out)
    assert {(it["name"], it["node"]) for it in listed} >= {(family.b.name, there.node_id)}

    def last_seen() -> dict | None:
        return json.loads(cluster.accounts.cli("device", "show", family.c.id, "--json").ok().out).get("lastSeen")

    until("it is known how it was last there", lambda: last_seen() is not None)

    # Nodes, as the command has them.
    listed = json.loads(cluster.accounts.cli("node", "list", "--json").ok().out)
    assert {it["node"] for it in listed} == {it.node_id for it in cluster.nodes}
    cluster.accounts.cli("node", "maintenance", there.node_id, "--end").ok()

    # All processes, each copy of the API among them.
    processes = json.loads(cluster.accounts.cli("status", "--json").ok().out)
    assert len([it for it in processes if it["service"] == "api"]) == len(cluster.apis)

    # What was changed is recorded, and read in pages of many answers to one question; denials in their own book.
    assert len(cluster.accounts.cli("audit", "query").ok().out.splitlines()) > 5
    assert ", denials: " not in cluster.accounts.cli("audit", "verify").ok().out, "nobody was denied yet"
    assert caller.send_msg(cluster.accounts.family().a, "1").text() == said.DENIED
    until("the denial is recorded", lambda: cluster.accounts.cli("audit", "query", "--kind", "denied.call").ok().out)
    assert ", denials: whole, " in cluster.accounts.cli("audit", "verify").ok().out
    with RawHttp(cluster.apis[2].port) as http:
        assert '"denied.call"' in http.ask("GET", "/v1/audit?book=denials", Authorization=keeper.bearer).body

    # A rotated token; a router that starts later; NATS that comes back without its memory.
    cluster.accounts.cli("device", "rotate-token", family.a.name, "--yes").ok()
    until("the caller's session has ended", caller.ended.is_set)
    cluster.routers[0].term()
    cluster.routers[0].restart()
    third = device(PahoV5, family.c).connect(here)
    assert third.send_msg(family.b, "4").text() == "4"
    assert hardened.violations()[before:] == []
    cluster.nats.restart()
    until("calls are answered again", lambda: third.send_msg(family.b, "5", timeout=2_000).text() == "5", within_s=40)
    assert hardened.violations() == []


@pytest.mark.parametrize("user", ["authorizer", "authorizer-store", "router", "router-store"])
def test_either_connection_of_a_service_may_break(tmp_path, device, user):
    hardened = Hardened(tmp_path)
    cluster = hardened.cluster
    try:
        family = cluster.accounts.family()
        caller = device(PahoV5, family.a).connect(cluster.nodes[0])
        device(PahoV5, family.b).connect(cluster.nodes[0]).become_callable(echo)
        hardened.kick(user)
        service = user.removesuffix("-store")
        (broken,) = (it for it in cluster.services if it.name == f"{service}-1")
        broken.process.wait_for_message("the connection to NATS is back")
        until("calls are answered", lambda: caller.send_msg(family.b, "1", timeout=2_000).text() == "1")
        # For longer than what it knew before is good for.
        for _ in range(30):
            assert caller.send_msg(family.b, "2", timeout=20_000).text() == "2"
            time.sleep(0.1)
        assert broken.admin.is_ready()
    finally:
        cluster.stop()


def test_services_of_one_process_have_each_its_own_rights(tmp_path, device):
    hardened = Hardened(tmp_path, nodes=0, authorizers=0, routers=0, whole_nodes=2, apis=1)
    try:
        here, there = hardened.cluster.nodes
        family = hardened.cluster.accounts.family()
        caller = device(PahoV5, family.a).connect(here)
        for identity, node in ((family.b, here), (family.c, there)):
            device(HttpDevice, identity).connect(node).become_callable(echo)
            assert caller.send_msg(identity, "1").text() == "1"
        # An application's call whose answer comes late, from where a node is not alone in its process.
        app, target = add_app(hardened.cluster.accounts), device(PahoV5, family.b).connect(there).become_callable()
        with RawHttp(hardened.cluster.apis[0].port) as http:
            call_id = call(http, app, family.b.id, {"timeout": 200}).json["callId"]
            target.next_call().answer('"late"')
            path = f"/v1/calls/{call_id}"
            until("it is kept", lambda: http.ask("GET", path, Authorization=app.bearer).json.get("body") == "late")
        assert hardened.violations() == []
    finally:
        hardened.cluster.stop()


def test_who_has_no_password_is_nobody(hardened):
    with RawNats(hardened.cluster.nats.url, "ingress", "guess") as stranger:
        assert "Authorization" in stranger.refused


# What nobody may do: NATS' own subjects, and those of clients that take what they are given.
NOBODYS = [
    *["$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.NODES.CONNZ", "$SYS.REQ.USER.INFO", "$SYS.REQ.USER.AUTH"],
    *["$JS.API.INFO", "$JS.API.STREAM.NAMES", "_INBOX.1.2", "anything", APP_CALL, "$SRV.PING"],
]
# What one has who reaches no JetStream.
NO_STORE = [
    *[f"$KV.swb_devices.device.{DEVICE}", "$KV.swb_devices.beat.7", f"$KV.swb_claims.{DEVICE}", f"$KV.swb_seen.{DEVICE}", "$KV.swb_keys.tickets"],
    *["swb.js.STREAM.INFO.KV_swb_devices", "$JS.API.STREAM.INFO.KV_swb_devices", "$JS.API.STREAM.CREATE.EVERYTHING"],
    *["$JS.API.CONSUMER.CREATE.KV_swb_claims.x", "$JS.API.DIRECT.GET.KV_swb_keys.$KV.swb_keys.tickets"],
    *["$JS.API.STREAM.DELETE.KV_swb_claims", "$JS.FC.KV_swb_devices.x", "$JS.ACK.KV_swb_devices.x"],
    *[f"swb.{book}.{DEVICE}.{user}" for book in ("audit", "denials") for user in ("ingress", "authorizer", "admin", "operator")],
]

# Of that, what the API may: it follows claims and devices.
READS = ["swb.js.STREAM.INFO.KV_swb_devices", "$JS.FC.KV_swb_devices.x"]

# What a user may do, and beside it what comes close and may not be done.
PUBLISH = {
    "ingress": (
        [
            *["swb.call", "swb.list", "swb.authenticate", f"swb.uplink.t.{DEVICE}.telemetry"],
            *["swb.claim", "swb.release", "swb.lease", "swb.compare", "swb.cancel", "swb.answer.7", "swb.late.0123456789abcdef"],
            # Answers: in no inbox it is guessed where one is awaited.
            *[INBOX, BETWEEN],
        ],
        # A stolen node: no call without the authorizer's word, no word in another's name, no look at the registry.
        [
            *["swb.route", "swb.presence", NODE, f"swb.bounce.1.{INBOX}", "swb.app", "swb.appcall", "swb.ended.0123456789abcdef", *NO_STORE],
            *[f"swb.event.device.{DEVICE}", "swb.event.directory", "swb.handover", "swb.beat", "swb.judge"],
            # No node has another send its devices away, or looks into it.
            *[*OPERATE, *INSPECT],
            # Who is told of claims is theirs to say who write them.
            *["swb.event.takeover.0123456789abcdef", "swb.event.claims.0123456789abcdef"],
        ],
    ),
    "authorizer": (
        ["swb.route", "swb.presence", INBOX, BETWEEN, f"swb.event.device.{DEVICE}", f"swb.decide.{DEVICE}.quota"],
        [
            *[NODE, "swb.call", "swb.authenticate", "swb.uplink.t.d.telemetry", "swb.answer.7", *NO_STORE, *OPERATE, *INSPECT],
            *["swb.claim", "swb.lease", "swb.handover", "swb.beat", "swb.judge", "swb.event.takeover.0123456789abcdef"],
        ],
    ),
    "authorizer-store": (
        ["$KV.swb_devices.beat.7", "swb.js.STREAM.INFO.KV_swb_devices", f"swb.denials.{DEVICE}.authorizer"],
        [
            *[NODE, INBOX, BETWEEN, "swb.call", "swb.route", "swb.event.directory", f"$KV.swb_devices.device.{DEVICE}"],
            *[f"$KV.swb_claims.{DEVICE}", "$KV.swb_keys.other", "$JS.API.STREAM.DELETE.KV_swb_devices"],
            # It fills its own book of the audit, and not the one of changes.
            *[f"swb.audit.{DEVICE}.authorizer", f"swb.denials.{DEVICE}.operator", f"swb.denials.{DEVICE}"],
        ],
    ),
    "api": (
        [
            *["swb.app", "swb.appcall", "swb.reply.0123456789abcdef.echo.1", INBOX, BETWEEN, *INSPECT, *READS],
            *[f"swb.js.CONSUMER.CREATE.KV_swb_claims.x.$KV.swb_claims.{DEVICE}", "$JS.FC.KV_swb_claims.x"],
            f"swb.js.CONSUMER.CREATE.KV_swb_devices.x.$KV.swb_devices.device.{DEVICE}",
            *["swb.ended.0123456789abcdef", "$KV.swb_once.a.b", "swb.js.STREAM.INFO.KV_swb_once"],
        ],
        # No call as a device, none that nobody has judged.
        [
            *["swb.call", "swb.list", "swb.authenticate", "swb.route", "swb.presence", "swb.judge", "swb.handover", NODE],
            *["swb.claim", "swb.beat", "swb.answer.7", f"swb.event.device.{DEVICE}", *(it for it in NO_STORE if it not in READS)],
            *["swb.late.0123456789abcdef", *OPERATE],
            # No key, and nothing else that is a secret; and its own bucket stays.
            *["swb.js.CONSUMER.CREATE.KV_swb_devices.x", "swb.js.DIRECT.GET.KV_swb_devices.x", "swb.js.STREAM.INFO.KV_swb_keys"],
            *[f"swb.js.CONSUMER.CREATE.KV_swb_devices.x.$KV.swb_devices.{what}" for what in (">", "*.*", "app.*", "credential.x")],
            *["swb.js.STREAM.DELETE.KV_swb_once", "swb.js.STREAM.UPDATE.KV_swb_once", "swb.js.CONSUMER.CREATE.KV_swb_once.x"],
        ],
    ),
    # The registry and policies, and what it changes there on record in its own name; no claims, and no device's voice.
    "admin": (
        [
            *["swb.app", "swb.appcall", "swb.reply.0123456789abcdef.echo.1", f"$KV.swb_devices.device.{DEVICE}"],
            *[f"swb.audit.{DEVICE}.admin", INBOX, BETWEEN, *INSPECT, *READS, "$JS.FC.KV_swb_claims.x"],
            *["swb.ended.0123456789abcdef", "$KV.swb_once.a.b", f"$KV.swb_policies.set.{DEVICE}"],
        ],
        [
            *["swb.call", "swb.list", "swb.authenticate", "swb.route", "swb.presence", "swb.judge", NODE],
            *["swb.claim", "swb.beat", f"swb.event.device.{DEVICE}", f"$KV.swb_claims.{DEVICE}", "$KV.swb_keys.tickets"],
            *[f"swb.audit.{DEVICE}.operator", f"swb.audit.{DEVICE}", f"swb.denials.{DEVICE}.admin", *OPERATE, f"swb.decide.{DEVICE}.quota"],
            "swb.late.0123456789abcdef",
            *["$JS.API.STREAM.DELETE.KV_swb_devices", "$JS.API.STREAM.PURGE.KV_swb_devices"],
            *["$JS.API.STREAM.DELETE.KV_swb_policies", "$JS.API.STREAM.PURGE.KV_swb_policies"],
        ],
    ),
    "router": (
        [NODE, INBOX, BETWEEN, "swb.event.takeover.0123456789abcdef", "swb.handover", "swb.beat", "swb.judge"],
        [
            *["swb.route", "swb.presence", "swb.call", "swb.authenticate", "swb.uplink.t.d.telemetry", "swb.answer.7"],
            *["swb.claim", "swb.lease", f"swb.event.device.{DEVICE}", *NO_STORE, *OPERATE, *INSPECT],
        ],
    ),
    "router-store": (
        [f"$KV.swb_claims.{DEVICE}", f"$KV.swb_seen.{DEVICE}", "swb.js.STREAM.INFO.KV_swb_claims"],
        [
            *[NODE, INBOX, BETWEEN, "swb.route", "swb.call", f"$KV.swb_devices.device.{DEVICE}", "$KV.swb_devices.beat.7"],
            *["$KV.swb_keys.other", "$JS.API.STREAM.DELETE.KV_swb_claims"],
        ],
    ),
    "operator": (
        [
            *[f"$KV.swb_devices.device.{DEVICE}", "swb.call", "swb.list", "swb.authenticate", "swb.presence", f"swb.audit.{DEVICE}.operator"],
            *[f"swb.decide.{DEVICE}.quota", *OPERATE, *INSPECT, "swb.js.INFO.claims", "swb.js.INFO.keys"],
        ],
        [
            *["swb.route", NODE, INBOX, BETWEEN, "swb.claim", f"$KV.swb_claims.{DEVICE}", f"$KV.swb_seen.{DEVICE}", "$KV.swb_keys.tickets"],
            *[f"swb.audit.{DEVICE}.authorizer", f"swb.audit.{DEVICE}", f"swb.denials.{DEVICE}.operator"],
            *["swb.answer.7", "$JS.API.STREAM.DELETE.KV_swb_devices", "$JS.API.STREAM.PURGE.KV_swb_devices"],
        ],
    ),
    "listener": ([], ["swb.call", "swb.route", "swb.answer.7", NODE, INBOX, BETWEEN, "swb.uplink.t.d.telemetry", *NO_STORE, *OPERATE, *INSPECT]),
}

# What nobody may hear, in a queue group or not.
NOBODY_HEARS = [
    (subject, queue)
    for subject in ("$SYS.>", "$SYS.REQ.USER.AUTH", "_INBOX.>", "_R_.>", "$KV.>", "$JS.>", "swb.js.>", "swb.>", ">", "*.*.*")
    for queue in ("", "thieves", "authorizer", "router")
] + [(subject, queue) for subject in ("swb.app.*.*.call.*", "swb.app.>", APP_CALL) for queue in ("", "thieves", "router")]

# Subject and queue group.
SUBSCRIBE = {
    "ingress": (
        [(NODE, ""), ("swb.reply.0123456789abcdef.>", ""), ("swb.event.device.*", ""), ("swb.event.claims.*", ""), ("swb.answer.7", ""), ("swb.beat", ""), ("swb.operate.*", ""), ("swb.inspect.ingress", ""), ("swb.instruct.ingress", "")],
        [
            *[("swb.call", ""), ("swb.call", "authorizer"), ("swb.authenticate", ""), ("swb.authenticate", "authorizer")],
            *[("swb.route", ""), ("swb.route", "router"), ("swb.uplink.>", ""), ("swb.feed.*.>", "")],
            *[("swb.claim", "router"), ("swb.claim", ""), ("swb.lease", ""), ("swb.cancel", "")],
            *[("swb.inspect.*", ""), ("swb.inspect.router", ""), ("swb.instruct.*", ""), ("swb.instruct.api", "")],
        ],
    ),
    "authorizer": (
        [
            *[("swb.call", "authorizer"), ("swb.judge", "authorizer"), ("swb.authenticate", "authorizer")],
            *[("swb.app.*.*.call.*", "authorizer"), ("$SRV.*", ""), ("$SRV.*.switchboard", ""), ("swb.reply.0123456789abcdef.>", "")],
            *[("swb.inspect.authorizer", ""), ("swb.instruct.authorizer", "")],
        ],
        # Nothing is overheard: who takes a question takes it out of the queue.
        [
            *[("swb.call", ""), ("swb.call", "spy"), ("swb.authenticate", ""), ("swb.route", "router"), ("swb.route", "")],
            *[(NODE, ""), ("swb.answer.7", ""), ("swb.uplink.>", ""), ("swb.feed.*.>", "")],
            *[("swb.inspect.*", ""), ("swb.inspect.router", ""), ("swb.instruct.*", ""), ("swb.instruct.router", "")],
        ],
    ),
    "authorizer-store": ([("swb.feed.0123456789abcdef.>", "")], [("swb.call", "authorizer"), ("swb.route", "router"), (NODE, "")]),
    "api": (
        [
            *[("swb.reply.0123456789abcdef.>", ""), ("swb.beat", ""), ("swb.read.0123456789abcdef.>", "")],
            *[("swb.inspect.api", ""), ("swb.instruct.api", ""), ("swb.ended.0123456789abcdef", ""), ("swb.late.0123456789abcdef", "")],
        ],
        [
            *[("swb.inspect.*", ""), ("swb.inspect.ingress", ""), ("swb.instruct.*", ""), ("swb.instruct.router", "")],
            ("swb.feed.*.>", ""),
            *[("swb.app", "authorizer"), ("swb.app", ""), ("swb.appcall", "authorizer"), ("swb.appcall", "")],
            ("swb.app.*.*.call.*", "authorizer"),
            *[("swb.call", ""), ("swb.route", "router"), (NODE, ""), ("swb.uplink.>", ""), ("swb.event.session.>", "")],
        ],
    ),
    "admin": (
        [
            *[("swb.reply.0123456789abcdef.>", ""), ("swb.beat", ""), ("swb.feed.0123456789abcdef.>", "")],
            *[("swb.read.0123456789abcdef.>", ""), ("swb.inspect.api", ""), ("swb.instruct.api", "")],
            *[("swb.ended.0123456789abcdef", ""), ("swb.late.0123456789abcdef", "")],
        ],
        [("swb.app", "authorizer"), ("swb.appcall", ""), ("swb.call", ""), ("swb.route", "router"), (NODE, ""), ("swb.uplink.>", "")],
    ),
    "router": (
        [
            *[("swb.route", "router"), ("swb.presence", "router")],
            *[("swb.claim", "router"), ("swb.handover", "router"), ("swb.lease", ""), ("swb.cancel", ""), ("swb.beat", "")],
            *[("swb.inspect.router", ""), ("swb.instruct.router", "")],
        ],
        [
            *[("swb.route", ""), ("swb.route", "spy"), ("swb.call", "authorizer"), ("swb.call", ""), (NODE, ""), ("swb.answer.7", "")],
            *[("swb.judge", ""), ("swb.judge", "authorizer"), ("swb.inspect.*", ""), ("swb.instruct.authorizer", "")],
            # Tickets go by in claims: nobody overhears them.
            *[("swb.claim", ""), ("swb.handover", ""), ("swb.release", "spy")],
            *[("swb.authenticate", "authorizer"), ("swb.uplink.>", ""), ("swb.feed.*.>", "")],
        ],
    ),
    "router-store": ([("swb.feed.0123456789abcdef.>", "")], [("swb.call", "authorizer"), ("swb.route", "router"), (NODE, "")]),
    "operator": ([("swb.reply.0123456789abcdef.>", "")], [("swb.call", ""), ("swb.route", ""), (NODE, ""), ("swb.uplink.>", ""), ("swb.operate.all", ""), ("swb.inspect.router", ""), ("swb.instruct.router", "")]),
    "listener": ([("swb.uplink.>", ""), ("swb.event.session.>", "")], [("swb.reply.>", ""), (NODE, ""), ("swb.call", "")]),
}


def test_the_api_reads_devices_and_claims_alone(nats):
    """A consumer's subject says what it is for, and NATS holds it to that."""
    thief = nats("api")

    def consume(bucket: str, said: str, config: dict) -> str:
        config |= {"name": "x", "deliver_subject": "swb.read.0123456789abcdef.x", "ack_policy": "none", "mem_storage": True}
        request = json.dumps({"stream_name": bucket, "config": config})
        return thief.ask(f"swb.js.CONSUMER.CREATE.{bucket}.x.{said}", request).body

    devices = "$KV.swb_devices.device.*"
    for config in ({}, {"filter_subject": ">"}, {"filter_subject": "$KV.swb_devices.app.*"}, {"filter_subjects": [devices, "$KV.swb_devices.app.*"]}):
        assert '"error"' in consume("KV_swb_devices", devices, config), config
    assert '"error"' not in consume("KV_swb_devices", devices, {"filter_subject": devices})
    assert '"error"' not in consume("KV_swb_claims", "$KV.swb_claims.*", {"filter_subject": "$KV.swb_claims.*"})


@pytest.mark.parametrize("user", USERS)
def test_what_a_user_may_publish(nats, user):
    allowed, forbidden = PUBLISH[user]
    connection = nats(user)
    assert {subject: connection.publish(subject) for subject in allowed} == dict.fromkeys(allowed)
    refused = {subject: connection.publish(subject) for subject in [*forbidden, *NOBODYS]}
    assert [subject for subject, why in refused.items() if not why or "Permissions Violation" not in why] == []


@pytest.mark.parametrize("user", USERS)
def test_what_a_user_may_subscribe_to(nats, user):
    allowed, forbidden = SUBSCRIBE[user]
    connection = nats(user)
    assert {of: connection.subscribe(*of) for of in allowed} == dict.fromkeys(allowed)
    refused = {of: connection.subscribe(*of) for of in [*forbidden, *NOBODY_HEARS]}
    assert [of for of, why in refused.items() if not why or "Permissions Violation" not in why] == []
