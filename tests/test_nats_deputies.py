"""What can a stolen NATS user have others do for it? Whoever answers, and JetStream, has rights that the thief lacks."""

import json
import secrets
from itertools import product

import pytest
from harness.apps import add_app, call
from harness.hardened import ACCOUNTS, USERS, Hardened
from harness.heads import device, head, node, routed
from harness.raw_http import RawHttp
from harness.raw_nats import Heard, RawNats
from harness.waiting import until

# Of nobody: what is heard there is a thief's work.
NODE, DEVICE = "fedcba9876543210", "11111111-2222-3333-4444-555555555555"
ACCOUNT_OF = {
    **{"ingress": "NODES", "authorizer": "CORE", "router": "CORE", "api": "APIS", "admin": "ADMINS", "operator": "OPERATORS", "listener": "LISTENERS"},
    **{"authorizer-store": "AUTHORIZERS", "router-store": "ROUTERS"},
}
BUCKETS = {"REGISTRY": "KV_swb_devices", "POLICIES": "KV_swb_policies", "AUDIT": "swb_audit", "DENIALS": "swb_denials", "CLAIMS": "KV_swb_claims", "SEEN": "KV_swb_seen", "KEYS": "KV_swb_keys", "ONCE": "KV_swb_once"}
# The buckets that a user reaches, and a key that it may write there.
STORES = {
    "authorizer-store": [("KV_swb_devices", "$KV.swb_devices.beat.9"), ("KV_swb_keys", None), ("KV_swb_policies", None), ("swb_denials", f"swb.denials.{NODE}.authorizer")],
    "router-store": [("KV_swb_claims", f"$KV.swb_claims.{DEVICE}"), ("KV_swb_seen", f"$KV.swb_seen.{DEVICE}"), ("KV_swb_keys", None)],
    "api": [("KV_swb_once", f"$KV.swb_once.{DEVICE}")],
    "admin": [("KV_swb_devices", f"$KV.swb_devices.note.{DEVICE}"), ("KV_swb_policies", None), ("swb_audit", f"swb.audit.{NODE}.admin"), ("KV_swb_once", f"$KV.swb_once.{DEVICE}")],
    "operator": [("KV_swb_devices", f"$KV.swb_devices.note.{DEVICE}"), ("KV_swb_policies", None), ("swb_audit", f"swb.audit.{NODE}.operator")],
}
# What operators tell processes: they gain nothing by having that said in their place.
INSTRUCT = {"swb.instruct.ingress", "swb.instruct.router"}
# What a user reads, and does not watch.
UNWATCHED = [("operator", "KV_swb_policies"), ("admin", "KV_swb_policies"), ("api", "KV_swb_once"), ("admin", "KV_swb_once")]
# Where a thief would like a message to arrive.
WANTED = [
    *[f"swb.node.{NODE}", f"swb.event.takeover.{NODE}", f"swb.event.claims.{NODE}", f"swb.event.device.{DEVICE}"],
    *[f"swb.operate.{NODE}", *INSTRUCT],
    *["swb.route", "swb.handover", "swb.presence", "swb.event.directory", f"swb.reply.{NODE}.1", f"swb.feed.{NODE}.1"],
    # An application's own.
    f"swb.app.{DEVICE}.{DEVICE}.call.{DEVICE}",
    *[f"$KV.swb_devices.device.{DEVICE}", f"$KV.swb_claims.{NODE}", "$KV.swb_keys.stolen", "$KV.swb_once.stolen", f"swb.audit.{DEVICE}.{USERS[0]}", f"swb.denials.{DEVICE}.{USERS[0]}"],
    *[f"$JS.API.STREAM.{what}.{bucket}" for what, bucket in product(("DELETE", "PURGE", "UPDATE"), BUCKETS.values())],
    *["_INBOX.thief", "$SYS.REQ.SERVER.PING"],
]
# Of these, what a user may say itself.
MAY_SAY = {
    "ingress": {f"swb.reply.{NODE}.1"},
    "authorizer": {"swb.route", "swb.presence", "swb.event.directory", f"swb.event.device.{DEVICE}", f"swb.reply.{NODE}.1"},
    "router": {"swb.handover", *(f"swb.{it}.{NODE}" for it in ("node", "event.takeover", "event.claims")), f"swb.reply.{NODE}.1"},
    "router-store": {f"$KV.swb_claims.{NODE}"},
    "api": {f"swb.reply.{NODE}.1", "$KV.swb_once.stolen"},
    "admin": {f"$KV.swb_devices.device.{DEVICE}", f"swb.reply.{NODE}.1", "$KV.swb_once.stolen"},
    "operator": {f"$KV.swb_devices.device.{DEVICE}", "swb.presence", f"swb.operate.{NODE}", *INSTRUCT},
}
# "Its target is offline", to a router's caller.
OFFLINE = head(4, [])


def asked(user: str) -> list[tuple[str, str]]:
    """The questions that are answered to a user: subject and body."""
    api = [
        it
        for bucket, key in STORES.get(user, [])
        for it in [
            (f"swb.js.STREAM.INFO.{bucket}", ""),
            (f"swb.js.STREAM.CREATE.{bucket}", "{}"),
            *([] if (user, bucket) in UNWATCHED or bucket in ("swb_audit", "swb_denials", "KV_swb_seen") else [(f"swb.js.CONSUMER.CREATE.{bucket}.x", "{}")]),
            *([(key, "stolen")] if key else []),
        ]
    ]
    authenticate = ("swb.authenticate", head("00" * 32, node(NODE), 1))
    # What an API follows is named in the subject.
    parts = {"KV_swb_claims": "$KV.swb_claims.*", "KV_swb_devices": "$KV.swb_devices.device.*"}
    followed = [(f"swb.js.CONSUMER.CREATE.{bucket}.x.{part}", "{}") for bucket, part in parts.items()]
    followed += [(f"swb.js.STREAM.INFO.{bucket}", "") for bucket in parts]
    device_asks = [authenticate, ("swb.call", "{}"), ("swb.list", "{}")]
    claim = head(device(DEVICE), node(NODE), node(NODE), 0, None, None, 1, bytes(28))
    compare = head(node(NODE), 0, 1, [])
    inspected = [(f"swb.inspect.{service}", head(0, [])) for service in ("ingress", "api", "authorizer", "router")]
    app_asks = [("swb.app", head("00" * 32, [0, []])), ("swb.appcall", "{}"), *inspected]
    answered = {
        "ingress": [*device_asks, ("swb.compare", compare), ("swb.claim", claim)],
        "authorizer": [("swb.presence", head([]))],
        "api": [*app_asks, *api, *followed],
        "admin": [*app_asks, *api, *followed],
        "operator": [*device_asks, ("swb.presence", head([])), ("swb.operate.all", head(0, [])), *inspected, *api],
    }
    return answered.get(user, api)


@pytest.fixture(scope="module")
def hardened(tmp_path_factory):
    hardened = Hardened(tmp_path_factory.mktemp("cluster"), apis=2, keeps=True)
    hardened.cluster.accounts.family()
    # With the first call under a key its bucket is there.
    app = add_app(hardened.cluster.accounts)
    with RawHttp(hardened.cluster.apis[0].port) as http:
        assert call(http, app, "nobody", Idempotency_Key="x").status == 404
    # With the first denial its stream is.
    with hardened.connect("ingress") as stranger, hardened.witness("DENIALS") as witness:
        stranger.ask("swb.authenticate", head("00" * 32, node(NODE), 1))
        until("it is recorded", lambda: "swb_denials" in witness.ask("$JS.API.STREAM.NAMES").body)
    yield hardened
    hardened.cluster.stop()


@pytest.fixture
def witnesses(hardened):
    """Who hears everything in each account. Subscribed to each subject too: to a wildcard alone JetStream delivers nothing."""
    witnesses = {account: hardened.witness(account) for account in ACCOUNTS}
    for witness in witnesses.values():
        for subject in [">", *WANTED]:
            assert witness.subscribe(subject) is None
    yield witnesses
    for witness in witnesses.values():
        witness.__exit__()


@pytest.fixture
def steal(hardened):
    stolen = []

    def connect(user):
        stolen.append(hardened.connect(user))
        return stolen[-1]

    yield connect
    for it in stolen:
        it.__exit__()


def arrived(witnesses: dict[str, RawNats], user: str, may_say: set[str] = frozenset()) -> list[tuple[str, str]]:
    """Where something arrived that a thief wanted there: account and subject."""
    heard = {account: {it.subject for it in witness.listen()} for account, witness in witnesses.items()}
    # Into its own account all comes, but there is nobody in it but its like; and nodes take nothing without an inbox for
    # the outcome. In CORE are others: all that may come is what it asks itself, and answers in an inbox.
    own = ACCOUNT_OF[user]
    heard[own] -= {subject for subject, _ in asked(user)} | {f"swb.reply.{NODE}.1"} if own == "CORE" else set(WANTED)
    return sorted((account, it) for account, subjects in heard.items() for it in subjects & set(WANTED) - may_say)


def settle(hardened: Hardened, witnesses: dict[str, RawNats], user: str) -> None:
    """Waits until whatever was asked before has been answered: each service has answered a question of later."""
    probe = hardened.connect(user)
    for subject, body in asked(user):
        if subject.startswith("swb.") and not subject.startswith("swb.js."):
            probe.ask(subject, body)
    probe.__exit__()


@pytest.mark.parametrize("user", USERS)
def test_an_answer_goes_nowhere_but_back(hardened, witnesses, steal, user):
    thief = steal(user)
    for subject, body in asked(user):
        # It is one that is answered, so each attempt below is a real one.
        assert "503" not in thief.ask(subject, body).headers, subject
        for wanted in WANTED:
            assert thief.publish(subject, body, reply_to=wanted) is None
    settle(hardened, witnesses, user)
    # What it may ask is heard where it is asked.
    said = {subject for subject, _ in asked(user)} | (INSTRUCT if user == "operator" else set())
    assert arrived(witnesses, user, said) == []


@pytest.mark.parametrize("user", USERS)
def test_to_hear_a_message_gives_no_right_to_answer_it_wherever(steal, user):
    """Who sends himself a message chooses where its answer is to go."""
    thief = steal(user)
    own = "swb.reply.0000000000000003"
    for subject in (f"{own}.>", "swb.answer.7", "swb.beat", "swb.bounce.1.>"):
        thief.subscribe(subject)
    for wanted, subject in product(set(WANTED) - MAY_SAY.get(user, set()), (f"{own}.echo.1", f"{own}.1", "swb.answer.7", "swb.beat")):
        thief.publish(subject, "", wanted)
        thief.listen()
        assert "Permissions Violation" in (thief.publish(wanted, "stolen") or ""), (wanted, subject)


def test_no_answer_goes_where_a_routed_call_says_but_to_an_inbox(hardened, witnesses, steal):
    thief = steal("authorizer")
    for reply_to in [*WANTED, "_R_.abcdef.abcdef"]:
        assert thief.publish("swb.route", routed(DEVICE, DEVICE, reply_to)) is None
    core = witnesses["CORE"]
    # The last one is answered, those before it were read before it.
    until("the last is answered", lambda: [it for it in core.listen() if it.subject == "_R_.abcdef.abcdef"])
    inboxes = {it for it in WANTED if it.startswith("swb.reply.")}
    published = {it.subject for it in core.listen() if it.body == OFFLINE}
    assert published & set(WANTED) == inboxes


def configurations(hardened: Hardened) -> dict[str, object]:
    """What streams there are, and how they are configured."""
    found = {}
    for account, stream in BUCKETS.items():
        witness = hardened.witness(account)
        names = json.loads(witness.ask("$JS.API.STREAM.NAMES").body)["streams"]
        found[account] = (names, json.loads(witness.ask(f"$JS.API.STREAM.INFO.{stream}").body)["config"])
        witness.__exit__()
    return found


def stored(hardened: Hardened, account: str) -> dict[str, str]:
    """What stands in a bucket, and where its beats may be left out."""
    witness = hardened.witness(account)
    info = json.loads(witness.ask(f"$JS.API.STREAM.INFO.{BUCKETS[account]}", '{"subjects_filter":">"}').body)
    witness.__exit__()
    return info["state"].get("subjects", {})


def last(hardened: Hardened, account: str, key: str) -> dict:
    """What stands under a key, and where in its bucket."""
    witness = hardened.witness(account)
    found = json.loads(witness.ask(f"$JS.API.STREAM.MSG.GET.{BUCKETS[account]}", json.dumps({"last_by_subj": key})).body)
    witness.__exit__()
    return found["message"]


# What a user may follow: a bucket, of it a key, and in which subject it has that delivered.
FOLLOWED = [(user, *stores[0], "swb.feed") for user, stores in STORES.items() if user != "api"]
FOLLOWED += [(user, "KV_swb_claims", f"$KV.swb_claims.{DEVICE}", "swb.read") for user in ("api", "admin")]
# Where what is delivered may be heard: a delivery has the subject of what is delivered, so in any account but the
# bucket's own and those that follow it.
WAYS = {"REGISTRY": {"AUTHORIZERS", "OPERATORS", "APIS", "ADMINS"}, "CLAIMS": {"ROUTERS", "APIS", "ADMINS"}}


@pytest.mark.parametrize("headers_only", [False, True], ids=["whole", "headers-only"])
@pytest.mark.parametrize(("user", "bucket", "key", "feed"), FOLLOWED, ids=lambda it: it.split(".")[0])
def test_jetstream_delivers_nowhere_else(hardened, witnesses, steal, user, bucket, key, feed, headers_only):
    thief = steal(user)
    home = next(account for account, stream in BUCKETS.items() if stream == bucket)
    # Who may not write there finds what others have written.
    writes = thief if feed == "swb.feed" else hardened.witness(home)
    assert '"seq"' in writes.ask(key, "stolen").body
    before, record = stored(hardened, home), last(hardened, home, key)

    def consume(what: str, deliver_to: str) -> str:
        name = f"{user}-{what}-{headers_only}"
        config = {"name": name, "deliver_subject": deliver_to, "deliver_policy": "all", "ack_policy": "none", "mem_storage": True}
        # Who follows parts alone says in the subject which.
        subject, filtered = (name, {"filter_subjects": [key]}) if feed == "swb.feed" else (f"{name}.{key}", {"filter_subject": key})
        request = json.dumps({"stream_name": bucket, "config": config | filtered | {"headers_only": headers_only}})
        return thief.ask(f"swb.js.CONSUMER.CREATE.{bucket}.{subject}", request).body

    def delivered(to: RawNats) -> list[Heard]:
        return [it for it in to.listen() if it.subject == key]

    # What it may: follow the bucket in a feed. Those of the case before may still be fed.
    own_feed = f"{feed}.{secrets.token_hex(8)}"
    thief.subscribe(f"{own_feed}.own")
    consume("own", f"{own_feed}.own")
    own = until("its own feed delivers", lambda: delivered(thief))
    assert {it.body for it in own} == {"" if headers_only else "stolen"}
    for number, wanted in enumerate(WANTED):
        consume(f"steals{number}", wanted)
    consume("last", f"{own_feed}.last")
    thief.subscribe(f"{own_feed}.last")
    until("the last delivers", lambda: len(delivered(thief)) >= 2)
    for account in set(ACCOUNTS) - {home} - WAYS[home]:
        assert delivered(witnesses[account]) == [], account
    assert set(stored(hardened, home)) - set(before) <= {f"$KV.swb_devices.beat.{number}" for number in range(64)}
    # Nor is it written again, without its body say. Beats are.
    assert ".beat." in key or last(hardened, home, key) == record


OPERATIONS = [
    *["STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE", "STREAM.SNAPSHOT", "STREAM.RESTORE"],
    *["STREAM.LEADER.STEPDOWN", "STREAM.PEER.REMOVE", "CONSUMER.LIST", "CONSUMER.NAMES", "STREAM.CREATE"],
]


@pytest.mark.parametrize("user", STORES)
def test_no_stream_is_changed_or_made(hardened, steal, user):
    thief = steal(user)
    before = configurations(hardened)
    streams = [*BUCKETS.values(), "STOLEN"]
    for operation, stream, prefix in product(OPERATIONS, streams, ("swb.js.", "$JS.API.")):
        config = {"name": stream, "subjects": [f"$KV.{stream.removeprefix('KV_')}.>"]}
        taken = [
            config | {"republish": {"src": ">", "dest": "swb.route"}},
            config | {"sources": [{"name": other} for other in BUCKETS.values()]},
            config | {"mirror": {"name": "KV_swb_keys"}},
            {"seq": 1},
        ]
        for body in ["", *map(json.dumps, taken)]:
            subject = f"{prefix}{operation}.{stream}"
            # What the API may ask is listed one by one.
            if prefix == "$JS.API." or (user == "api" and (operation, stream) != ("STREAM.CREATE", "KV_swb_once")):
                assert "Permissions Violation" in (thief.publish(subject, body) or "")
                continue
            answer = thief.ask(subject, body)
            assert "503" in answer.headers or '"error"' in answer.body, (subject, body, answer)
    assert configurations(hardened) == before


# Headers that have a server do more than take a message, and what they name.
HEADERS = [
    *[{"Nats-Trace-Dest": wanted} for wanted in WANTED],
    *[{"Nats-Trace-Dest": wanted, "Nats-Trace-Only": "true"} for wanted in WANTED],
    *[{"Nats-Schedule": "@at 2020-01-01T00:00:00Z", "Nats-Schedule-Target": wanted} for wanted in WANTED],
    {"Nats-Batch-Id": "stolen", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"},
    {"Nats-Rollup": "all"},
    {"Nats-Rollup": "sub"},
    {"Nats-Incr": "1"},
    {"Nats-Request-Info": '{"acc":"REGISTRY","svc":"CORE"}'},
    {"Nats-Request-Info": '{"acc":"$SYS"}', "traceparent": "00-" + "1" * 32 + "-" + "1" * 16 + "-01"},
]


@pytest.mark.parametrize("user", [user for user in USERS if user != "listener"])
def test_no_header_does_more_than_its_message(hardened, witnesses, steal, user):
    thief = steal(user)
    before, records = configurations(hardened), set(stored(hardened, "REGISTRY"))
    assert [it for it in records if it.startswith("$KV.swb_devices.device.")]
    for headers in HEADERS:
        for subject, body in asked(user) or [("swb.handover", "{}")]:
            thief.publish(subject, body, "swb.reply.0000000000000002.1", headers)
    settle(hardened, witnesses, user)
    assert arrived(witnesses, user, MAY_SAY.get(user, set())) == []
    assert configurations(hardened) == before
    assert set(stored(hardened, "REGISTRY")) >= records
