"""Who did what? Every change and denial has a record, each follows from the one before it, and what is done to them shows."""

import asyncio
import json
import re
import uuid

import nats
import pytest
from harness import said
from harness.accounts import TOKENS
from harness.devices import PahoV5
from harness.nats_server import NatsServer
from harness.processes import run
from harness.programs import ROOT, built
from harness.waiting import until

POLICY = 'permit (principal is Device, action, resource) when { principal.hasTag("a") };\n'


@pytest.fixture
def server(tmp_path):
    server = NatsServer(tmp_path / "nats", tmp_path / "logs")
    yield server
    server.stop()


@pytest.fixture
def cli(server):
    return lambda *arguments: run(built("switchboard"), *arguments, "--nats", server.url)


def query(cli, *filters):
    return json.loads(cli("audit", "query", *filters, "--json").ok().out)


def test_every_change_has_a_record_of_who_where_what_and_why(cli, tmp_path):
    def changed(*arguments):
        return cli(*arguments, "--as", "Ann", "--why", "a new house").ok().out

    token = f"token-{uuid.uuid4().hex}"
    TOKENS.add(token)
    changed("tenant", "add", "Acme")
    changed("tenant", "rename", "Acme", "Acme 2")
    changed("customer", "add", "North")
    changed("customer", "rename", "North", "South")
    changed("customer", "add", "Empty")
    changed("customer", "remove", "Empty", "--yes")
    added = json.loads(changed("device", "add", "Pump", "--token", token, "--customer", "South", "--label", "a=b", "--json"))
    changed("device", "rename", "Pump", "Pump 2")
    changed("device", "label", "set", "Pump 2", "c=d")
    changed("device", "label", "remove", "Pump 2", "c")
    changed("device", "unassign", "Pump 2")
    changed("device", "assign", "Pump 2", "South")
    rotated = json.loads(changed("device", "rotate-token", "Pump 2", "--yes", "--json"))
    TOKENS.add(rotated["token"])
    (tmp_path / "rooms.cedar").write_text(POLICY)
    changed("policy", "put", str(tmp_path / "rooms.cedar"))
    changed("policy", "remove", "built-in")
    changed("policy", "rollback", "1")
    (tmp_path / "more.csv").write_text("name,token\nOne,\nTwo,\n")
    changed("device", "import", "--tenant", "Acme 2", "--tokens-out", str(tmp_path / "tokens.csv"), str(tmp_path / "more.csv"))
    changed("device", "remove", "Pump 2", "--yes")

    records = query(cli)
    assert [it["kind"] for it in records] == [
        *["tenant.add", "tenant.rename", "customer.add", "customer.rename", "customer.add", "customer.remove"],
        *["device.add", "device.rename", "device.label", "device.label", "device.unassign", "device.assign"],
        *["device.rotate-token", "policy.change", "policy.change", "policy.change", "device.import", "device.remove"],
    ]
    assert {(it["who"], it["why"], it["user"]) for it in records} == {("Ann", "a new house", "nobody")}
    assert all(it["from"].startswith("machine ") for it in records)
    assert [it["number"] for it in records] == list(range(1, len(records) + 1))
    assert [it["devices"] for it in records if it["kind"] == "device.rename"] == [[added["id"]]]
    assert [(it["version"], it["what"]) for it in records if it["kind"] == "policy.change"] == [
        (1, "built-in added, rooms added"),
        (2, "built-in removed"),
        (3, "built-in added"),
    ]
    [bulk] = [it for it in records if it["kind"] == "device.import"]
    assert len(bulk["devices"]) == 2 and bulk["what"].startswith("2 devices")
    text = json.dumps(records) + cli("audit", "tail", "-n", "100").ok().out
    assert re.search(r'\["One" \([0-9a-f-]+\) → "Two" ', text), "devices that are there are told by their names"
    assert token not in text and rotated["token"] not in text and POLICY.strip() not in text

    # Filters: by device also once it is gone, by kind with all below it, by tenant and time.
    assert len(query(cli, "--device", added["id"])) == 8
    assert len(query(cli, "--kind", "device.label")) == 2
    assert len(query(cli, "--kind", "customer")) == 4
    assert query(cli, "--kind", "devic") == query(cli, "--tenant", "none") == []
    assert len(query(cli, "--tenant", "Acme 2", "--since", "1h")) == len(records)
    assert [it["kind"] for it in query(cli, "--limit", "1")] == ["device.remove"]
    refused = cli("audit", "query", "--since", "yesterday")
    assert refused.code == 2 and "as in 12h" in refused.err
    line = cli("audit", "tail", "-n", "1").ok().out
    assert "#18 device.remove by Ann as nobody, machine" in line and "why: a new house" in line
    checked = cli("audit", "verify").ok().out
    assert "Acme 2: whole, 18 records" in checked and "head 18:" in checked
    # Nobody was denied: of that there is no chain, and none is missed but by who had seen its head.
    assert "denials" not in checked and {it["book"] for it in records} == {"changes"}
    gone = cli("audit", "verify", "--tenant", "Acme 2", "--head", f"denials:1:{'0' * 64}")
    assert gone.code == 1 and "Acme 2, denials: BROKEN, 0 records" in gone.out


def test_the_page_names_every_kind():
    code = "".join(file.read_text() for folder in ("services", "shared") for file in (ROOT / folder).glob("*/src/**/*.rs"))
    written = set(re.findall(r'(?:\bentry|Entry::new)\(\s*"([a-z]+\.[a-z-]+)"|Denied::\w+ => "([a-z.-]+)"', code))
    page = (ROOT / "services" / "authorizer" / "AUDIT.md").read_text()
    told = re.findall(r"`([a-z]+\.[a-z-]+)`", "".join(re.findall(r"^\|([^|]+)\|", page, re.MULTILINE)))
    settings = {it for it in told if it.startswith("audit.")}
    assert sorted(set(told) - settings) == sorted({one or other for one, other in written})
    assert len(written) > 20


def test_what_fails_has_a_record_that_says_so(cli):
    cli("tenant", "add", "Acme").ok()
    cli("device", "add", "Pump").ok()
    assert cli("device", "add", "Pump").code == 1
    assert [it["kind"] for it in query(cli)] == ["tenant.add", "device.add", "device.add", "device.add.failed"]
    assert "taken" in query(cli)[-1]["why"]
    assert "failed" in cli("audit", "query", "--kind", "device.add").ok().out


def test_what_cannot_be_recorded_does_not_happen(cli, server):
    cli("tenant", "add", "Acme").ok()
    # Somebody else has the stream's name: it takes none of our subjects.
    asyncio.run(rewritten(server.url, lambda records: [], subjects=["elsewhere"]))
    refused = cli("device", "add", "Pump")
    assert refused.code == 1 and "nothing was changed: the audit does not take the record" in refused.err
    assert json.loads(cli("device", "list", "--json").ok().out) == []


def change(records, place, old, new):
    subject, data = records[place]
    assert old in data
    return [*records[:place], (subject, data.replace(old, new)), *records[place + 1 :]]


TAMPERED = {
    "removed": (lambda it: [*it[:3], *it[4:]], "record 4 was removed"),
    "several removed": (lambda it: [*it[:2], *it[5:]], "records 3 to 5 were removed"),
    "changed": (lambda it: change(it, 2, b"Ann", b"Eve"), "record 3 was changed"),
    "reordered": (lambda it: [*it[:3], it[4], it[3], *it[5:]], "record 4 stands behind a later one"),
    "repeated": (lambda it: [*it[:3], it[2], *it[3:]], "record 3 stands there twice"),
    "beginning removed": (lambda it: it[2:], "what stood before record 3 is gone"),
    "another's name": (lambda it: [*it[:3], (it[3][0].replace("nobody", "eve"), it[3][1]), *it[4:]], "record 4 names another"),
    "nonsense": (lambda it: [*it[:3], (it[3][0], b"{}"), *it[4:]], "is no record"),
    "end removed": (lambda it: it[:-2], "record 8, the head of an earlier check"),
    "all removed": (lambda it: [], "record 8, the head of an earlier check"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_was_done_to_a_chain_is_told(cli, server, how):
    tamper, told = TAMPERED[how]
    cli("tenant", "add", "Acme").ok()
    for number in range(7):
        cli("customer", "add", f"Customer {number}", "--as", "Ann").ok()
    [whole] = json.loads(cli("audit", "verify", "--tenant", "Acme", "--json").ok().out)
    head = f"{whole['head']['number']}:{whole['head']['hash']}"
    assert (whole["isWhole"], whole["first"], whole["cut"], whole["breaks"]) == (True, 1, "nothing", [])
    cli("audit", "verify", "--tenant", "Acme", "--head", head).ok()
    asyncio.run(rewritten(server.url, tamper))
    broken = cli("audit", "verify", "--tenant", "Acme", "--head", head)
    assert broken.code == 1 and told in broken.out and "Acme: BROKEN" in broken.out
    # More is appended to what is there, and what was done still shows.
    if how != "all removed":
        cli("customer", "add", "Later").ok()
        assert told in cli("audit", "verify", "--tenant", "Acme", "--head", head).out


def test_a_beginning_that_outlived_its_time_is_no_break(cli, server):
    short = ["--set", "audit.max_age_s=2"]
    cli("tenant", "add", "Acme", *short).ok()
    cli("customer", "add", "Early", *short).ok()

    def cut():
        # A chain all of whose records are gone begins anew: there is always a young one.
        cli("customer", "add", uuid.uuid4().hex, *short).ok()
        [chain] = json.loads(cli("audit", "verify", "--json").ok().out)
        return chain["first"] > 2 and chain

    chain = until("the beginning is cut", cut)
    assert (chain["isWhole"], chain["cut"], chain["breaks"]) == (True, "age", [])
    assert "those before it have outlived their time" in cli("audit", "verify").ok().out


def test_nobody_takes_a_record_away(cli, server):
    """Not even who may do everything in NATS, but for removing the stream as a whole."""
    cli("tenant", "add", "Acme").ok()

    async def attempts():
        connection = await nats.connect(server.url)
        try:
            jetstream = connection.jetstream()
            [stream] = [it for it in await jetstream.streams_info() if it.config.name == "swb_audit"]
            with pytest.raises(nats.js.errors.APIError, match="delete not permitted"):
                await jetstream.delete_msg("swb_audit", stream.state.first_seq)
            with pytest.raises(nats.js.errors.APIError, match="purge not permitted"):
                await jetstream.purge_stream("swb_audit")
            with pytest.raises(nats.js.errors.APIError, match="can not cancel deny"):
                await jetstream.update_stream(stream.config.evolve(deny_delete=False))
        finally:
            await connection.close()

    asyncio.run(attempts())
    assert len(query(cli)) == 1


def test_denials_of_a_running_system_are_recorded(shared_cluster, family, device):
    cli, (node, *_) = shared_cluster.accounts.cli, shared_cluster.nodes
    stranger = shared_cluster.accounts.family().a
    caller = device(PahoV5, family.a).connect(node)
    assert caller.send_msg(stranger, "1").text() == said.DENIED

    def recorded():
        return [it for it in query(cli, "--kind", "denied.call", "--device", family.a.id)]

    [denial] = until("it is recorded", recorded)
    assert denial["devices"] == [family.a.id, stranger.id]
    assert (denial["why"], denial["version"], denial["user"]) == ("not_allowed", 0, "nobody")
    assert (denial["from"].startswith("node "), denial["book"]) == (True, "denials")
    assert cli("audit", "verify").code == 0


def test_denials_push_out_denials_alone(new_cluster, device):
    """Whoever has a token can be denied as often as he likes: of changes nothing is lost by that."""
    small = {"audit.max_bytes": "1048576", "audit.max_denied_bytes": "1048576"}
    fast = {"audit.denials_per_second": "1000", "ingress.calls_per_second_per_device": "0"}
    cluster = new_cluster(settings=small | fast, operator={f"SWITCHBOARD_{it.replace('.', '__').upper()}": value for it, value in small.items()})
    cli, (family, stranger) = cluster.accounts.cli, (cluster.accounts.family(), cluster.accounts.family().a)
    of = ("--tenant", family.a.tenant)
    changed = query(cli)
    caller = device(PahoV5, family.a).connect(cluster.nodes[0])

    def chains(*arguments):
        return {it["book"]: it for it in json.loads(cli("audit", "verify", *of, "--json", *arguments).ok().out)}

    def head(chain):
        return f"{chain['head']['number']}:{chain['head']['hash']}"

    def flooded():
        for _ in range(100):
            assert caller.send_msg(stranger, "1").text() == said.DENIED
        denials = chains().get("denials")
        return denials and denials["first"] > 1 and denials

    # Both are shown as one, by time, and followed: nothing of before.
    following, sent = cluster.accounts.started("audit", "tail", "--follow", "--since", "0s", "--json"), []

    def heard():
        sent.append(caller.send_msg(stranger, "1").text())
        return following.out

    until("it is followed", heard)
    until("all are recorded", lambda: len(query(cli, "--kind", "denied")) == len(sent))
    cli("customer", "add", "Later", *of).ok()
    assert [it["kind"] for it in query(cli, *of, "--limit", "2")] == ["denied.call", "customer.add"]
    until("and so is a change", lambda: "customer.add" in following.out)
    following.interrupt()
    following.wait()
    assert {json.loads(line)["kind"] for line in following.out.splitlines()} == {"denied.call", "customer.add"}
    early = head(chains()["denials"])

    denials = until("denials are pushed out", flooded)
    assert (denials["isWhole"], denials["cut"]) == (True, "size")
    changes = chains()["changes"]
    assert (changes["isWhole"], changes["first"], changes["records"]) == (True, 1, len(changed) + 1)
    assert [it for it in query(cli) if it["book"] == "changes"][:-1] == changed

    # A head of each is looked for, and one that was pushed out is not missed.
    heads = ["--head", head(changes), "--head", f"denials:{head(chains()['denials'])}"]
    assert f"  head {head(changes)}\n" in cli("audit", "verify", *of, *heads).ok().out
    chains("--head", f"denials:{early}")
    other = cli("audit", "verify", *of, "--head", f"denials:{head(changes)}")
    assert other.code == 1 and ", denials: BROKEN" in other.out and "not there as it was" in other.out
    assert "two heads of one chain" in cli("audit", "verify", *of, *heads[:2], *heads[:2]).err


async def rewritten(url, tamper, subjects=None):
    """Does to the stream what only its files' owner could: makes it anew out of the records that it had."""
    connection = await nats.connect(url)
    try:
        jetstream = connection.jetstream()
        info = await jetstream.stream_info("swb_audit")
        read = [await jetstream.get_msg("swb_audit", it) for it in range(info.state.first_seq, info.state.last_seq + 1)]
        records = tamper([(it.subject, it.data) for it in read])
        await jetstream.delete_stream("swb_audit")
        if subjects:
            config = {"name": "swb_audit", "subjects": subjects, "storage": "file"}
        else:
            config = info.config.as_dict()
            config["first_seq"] = info.state.first_seq
        made = await connection.request("$JS.API.STREAM.CREATE.swb_audit", json.dumps(config).encode(), timeout=5)
        assert "error" not in json.loads(made.data), made.data
        for subject, data in records:
            await jetstream.publish(subject, data)
    finally:
        await connection.close()
