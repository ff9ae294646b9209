"""Is a stolen node one node? NATS that asks the identity service, on a real server: what a node's connection may then do."""

import itertools
import re
import secrets

import pytest
from harness import heads
from harness.cluster import Identity
from harness.devices import PahoV5
from harness.devices.device import echo
from harness.hardened import IDENTITY, PASSWORDS, Hardened, new_issuer
from harness.heads import head
from harness.raw_nats import RawNats
from harness.waiting import until
from test_nats_deputies import asked
from test_nats_permissions import BETWEEN, NOBODY_HEARS, NOBODYS, PUBLISH, SUBSCRIBE

# Run here once more, where each node has rights of its own.
from test_nats_permissions import test_the_services_need_no_more as test_the_services_need_no_more

# A router's answer to a claim, and an authorizer's to a call or a list, without a ticket that counts.
REFUSED, UNAVAILABLE = head(2, []), head(12, [])
# Of another node.
OTHER = "0123456789abcdef"


@pytest.fixture(scope="module")
def hardened(tmp_path_factory):
    hardened = Hardened(tmp_path_factory.mktemp("cluster"), nodes=2, authorizers=2, routers=2, identities=2, apis=3, keeps=True)
    yield hardened
    hardened.cluster.stop()


@pytest.fixture
def thief(hardened):
    """Who has a node's secret, and a key that makes him a node of his own."""
    known = len(joined(hardened))
    thief = hardened.connect("ingress", secrets.token_hex(32))
    thief.node = until("he has joined", lambda: joined(hardened)[known:])[0]
    thief.inbox = f"swb.reply.{thief.node}"
    yield thief
    thief.__exit__()


def joined(hardened):
    """The nodes that were let in, in the order of each identity service."""
    lines = [line for it in hardened.cluster.identities for line in it.process.log_lines()]
    lines.sort(key=lambda line: line["timestamp"])
    return [line["node"] for line in lines if line["message"] == "a node joined"]


def taken(answers):
    """What was taken of what should not be."""
    return [it for it, why in answers.items() if not why or "Permissions Violation" not in why]


def test_a_node_may_say_what_nodes_say_in_its_own_name(thief):
    allowed, forbidden = PUBLISH["ingress"]
    own = f"swb.reply.{thief.node}.echo.1"
    assert {it: thief.publish(it) for it in [*allowed, own]} == dict.fromkeys([*allowed, own])
    others = [f"swb.reply.{OTHER}.echo.1", f"swb.node.{thief.node}", f"swb.node.{OTHER}", f"swb.event.takeover.{OTHER}"]
    for wanted in others:
        thief.publish(own, "", wanted)
    thief.listen()
    assert taken({it: thief.publish(it) for it in [*forbidden, *NOBODYS, *others]}) == []


def test_a_node_hears_what_is_for_it_alone(thief):
    tag = int(thief.node, 16) >> 50
    own = [f"swb.{it}" for it in (f"node.{thief.node}", f"reply.{thief.node}.>", f"answer.{tag}", f"event.takeover.{thief.node}")]
    own += [f"swb.event.claims.{thief.node}", "swb.event.device.*", "swb.event.directory", "swb.beat", f"swb.operate.{thief.node}", "swb.operate.all"]
    own += ["swb.inspect.ingress", "swb.instruct.ingress"]
    assert {it: thief.subscribe(it) for it in own} == dict.fromkeys(own)
    kinds = ["node", "reply", "event.takeover", "event.claims", "event", "answer", "operate"]
    others = [f"swb.{kind}.{which}" for kind in kinds for which in (OTHER, "*", ">", f"{OTHER}.>", "*.>", f"*.{thief.node}")]
    others += [f"swb.answer.{tag + 1}", f"swb.node.{thief.node}x", f"*.node.{thief.node}"]
    every = [(it, queue) for it in others for queue in ("", "thieves")]
    answers = {of: thief.subscribe(*of) for of in [*SUBSCRIBE["ingress"][1], *NOBODY_HEARS, *every]}
    assert taken(answers) == []


def test_nothing_of_others_calls_comes_by(hardened, thief, device):
    """He hears all that he may, while devices of two nodes call each other, and poll at one and answer at the other."""
    family = hardened.cluster.accounts.family()
    here, there = hardened.cluster.nodes
    for subject in (f"swb.node.{thief.node}", f"swb.reply.{thief.node}.>", f"swb.event.takeover.{thief.node}", f"swb.event.claims.{thief.node}"):
        assert thief.subscribe(subject) is None
    target = device(PahoV5, family.b).connect(there).become_callable(echo)
    caller = device(PahoV5, family.a).connect(here)
    for number in range(5):
        assert caller.send_msg(family.b, str(number)).text() == str(number)
    newer = device(PahoV5, family.b).connect(here).become_callable(echo)
    until("the older session has ended", target.ended.is_set)
    assert caller.send_msg(family.b, '"again"').text() == '"again"'
    newer.close()
    assert thief.listen() == []


def test_he_is_no_device_without_its_token(hardened, thief):
    family = hardened.cluster.accounts.family()
    caller, target, ticket = heads.device(family.a.id), heads.device(family.b.id), bytes(28)
    for node in map(heads.node, (thief.node, hardened.cluster.nodes[0].node_id)):
        claim = head(caller, node, node, 0, None, None, 1, ticket)
        call = head([node, 1], caller, "", 1, ticket, target, 2_000, None, 0, None, False)
        listed = head(caller, node, 1, ticket, None, None, None, False)
        assert thief.ask("swb.claim", claim).body == REFUSED
        assert thief.ask("swb.call", call).body == UNAVAILABLE
        assert thief.ask("swb.list", listed).body == UNAVAILABLE


def test_no_answer_to_him_moves_another_node(hardened, thief, device):
    """He has the services answer to every subject of a node that it listens to, his questions the ones that are answered."""
    family = hardened.cluster.accounts.family()
    here, there = hardened.cluster.nodes
    target = device(PahoV5, family.b).connect(there).become_callable(echo)
    caller = device(PahoV5, family.a).connect(here)
    subjects = [f"swb.{it}.{there.node_id}" for it in ("node", "event.takeover", "event.claims", "reply", "operate")]
    subjects += ["swb.operate.all", f"swb.event.device.{family.b.id}", "swb.event.directory", "swb.beat", f"swb.reply.{there.node_id}.0"]
    for subject, body in asked("ingress"):
        for wanted in subjects:
            assert thief.publish(subject, body, wanted) is None
        thief.ask(subject, body)
    assert caller.send_msg(family.b, "1").text() == "1"
    assert not target.ended.is_set()
    assert there.admin.is_ready()


def test_a_number_in_anothers_inbox_is_not_guessed(hardened, device):
    """Whoever asks says where the answer goes, and NATS does not look."""
    family = hardened.cluster.accounts.family()
    witness = hardened.witness("NODES")
    assert witness.subscribe("swb.reply.*.*") is None
    caller = device(PahoV5, family.a).connect(hardened.cluster.nodes[0])
    for _ in range(3):
        assert family.b.id in caller.get_devices()
    numbers = [int(it.subject.rsplit(".", 1)[1]) for it in witness.listen()]
    assert numbers
    assert min(numbers) > 1_000_000_000
    assert min(abs(one - other) for one, other in itertools.pairwise(sorted(numbers))) > 1_000_000_000


@pytest.mark.parametrize("key", ["", "00", "g" * 64, "a" * 63, "a" * 65])
def test_who_shows_no_key_is_no_node(hardened, key):
    with RawNats(hardened.cluster.nats.url, "ingress", PASSWORDS["ingress"], key) as stranger:
        assert "Authorization" in stranger.refused


@pytest.mark.parametrize("user", ["ingress", "router", "authorizer-store", "operator", IDENTITY, "witness", ""])
def test_the_secret_makes_nodes_and_nobody_else(hardened, user):
    secret = PASSWORDS["ingress"] if user != "ingress" else "guess"
    with RawNats(hardened.cluster.nats.url, user, secret, "a" * 64) as stranger:
        assert "Authorization" in stranger.refused


def test_the_identity_services_password_says_nothing(hardened):
    thief = hardened.connect(IDENTITY)
    assert thief.publish("$SYS._INBOX.a.b") is None
    subjects = ["$SYS.REQ.USER.AUTH", "swb.route", f"swb.node.{OTHER}", BETWEEN, *PUBLISH["ingress"][0], *NOBODYS]
    assert taken({it: thief.publish(it) for it in subjects}) == []
    assert thief.subscribe("$SYS.REQ.USER.AUTH", "identity") is None
    heard = [("$SYS.REQ.USER.AUTH", ""), ("$SYS.REQ.USER.AUTH", "spy"), (f"swb.node.{OTHER}", ""), *SUBSCRIBE["ingress"][1], *NOBODY_HEARS]
    assert taken({of: thief.subscribe(*of) for of in heard}) == []
    thief.__exit__()


def test_without_the_service_old_nodes_live_and_new_ones_wait(hardened, device):
    cluster = hardened.cluster
    family = cluster.accounts.family()
    # Of two copies, one does.
    cluster.identities[0].kill()
    cluster.add_node()
    cluster.identities[1].kill()
    target = device(PahoV5, family.b).connect(cluster.nodes[0]).become_callable(echo)
    caller = device(PahoV5, family.a).connect(cluster.nodes[1])
    waiting = cluster.made_node()
    until("the new node says what it waits for", lambda: is_refused(waiting))
    # Another with a key of its own is no help: NATS does not know that key.
    forger = Identity(cluster.nats, cluster.logs, 9, cluster.identities[0].settings | {"identity.issuer_seed": new_issuer()[0]}, cluster._launch)
    try:
        forger.wait_ready()
        until("the forger has let it in", lambda: "a node joined" in forger.process.err, within_s=20)
        assert is_refused(waiting)
        assert caller.send_msg(family.b, "1").text() == "1"
        assert not target.ended.is_set()
    finally:
        forger.term()
    cluster.identities[0].restart()
    waiting.wait_ready(within_s=20)
    assert PASSWORDS["ingress"] not in waiting.process.err + cluster.identities[0].process.err


def is_refused(node):
    """Whether it is not ready, and says that NATS does not let it in."""
    status, text = node.admin.get("/readyz")
    return status == 503 and re.search("authoriz|refuses", text)


def test_rights_that_end_are_asked_for_again(tmp_path, device):
    hardened = Hardened(tmp_path, identities=1, settings={"identity.lifetime_s": "10"})
    cluster = hardened.cluster
    try:
        family = cluster.accounts.family()
        node = cluster.nodes[0]
        device(PahoV5, family.b).connect(node).become_callable(echo)
        caller = device(PahoV5, family.a).connect(node)
        assert caller.send_msg(family.b, "1").text() == "1"
        node.process.wait_for_message("the connection to NATS is back", within_s=20)
        until("calls are answered", lambda: caller.send_msg(family.b, "2", timeout=2_000).text() == "2")
        assert set(joined(hardened)) == {node.node_id}
        assert len(joined(hardened)) == 2
    finally:
        cluster.stop()
