"""Can a person keep the registry by command? Devices, customers and tenants, one by one and in bulk."""

import csv
import json
import re
import uuid

import pytest
from harness.accounts import TOKENS
from harness.devices import PahoV5
from harness.processes import Process, run
from harness.programs import built
from harness.waiting import until


@pytest.fixture
def tenant(cli):
    """A tenant of this test alone, with two customers."""
    name = f"Tenant {uuid.uuid4().hex[:8]}"
    cli("tenant", "add", name).ok()
    for customer in ("North", "South"):
        cli("customer", "add", customer, "--tenant", name).ok()
    return name


@pytest.fixture
def cli(shared_cluster):
    return shared_cluster.accounts.cli


@pytest.fixture
def load(cli):
    """What a command prints with --json."""
    return lambda *arguments: json.loads(cli(*arguments, "--json").ok().out)


def test_a_device_from_its_addition_to_its_removal(cli, load, tenant, raw, shared_cluster):
    port = shared_cluster.nodes[0].mqtt_port
    name = f"Pump {uuid.uuid4().hex[:8]}"
    added = load("device", "add", name, "--tenant", tenant, "--customer", "North", "--label", "site=here")
    TOKENS.add(added["token"])
    # What the command wrote reaches the authorizers a moment later.
    until("its token is good", lambda: raw(port).connect(added["token"]).code == 0)

    shown = load("device", "show", name)
    assert (shown["id"], shown["customerName"], shown["labels"]) == (added["id"], "North", {"site": "here"})
    assert shown["online"] is False and "token" not in shown
    assert load("device", "assign", name, "South")["customerName"] == "South"
    assert load("device", "show", added["id"])["customerName"] == "South"
    assert [it["id"] for it in load("device", "list", "--tenant", tenant, "--customer", "South")] == [added["id"]]
    cli("device", "unassign", name).ok()
    assert [it["id"] for it in load("device", "list", "--tenant", tenant, "--unassigned")] == [added["id"]]
    assert load("device", "label", "set", name, "site=there")["labels"] == {"site": "there"}
    assert load("device", "rename", name, f"{name} II")["name"] == f"{name} II"
    rotated = load("device", "rotate-token", "--yes", f"{name} II")
    TOKENS.add(rotated["token"])
    until("the old token is void", lambda: raw(port).connect(added["token"]).code == 5)
    until("the new one is good", lambda: raw(port).connect(rotated["token"]).code == 0)
    assert load("device", "remove", "--yes", added["id"]) == [{"id": added["id"], "name": f"{name} II"}]
    until("it is unknown", lambda: raw(port).connect(rotated["token"]).code == 5)
    assert load("device", "list", "--tenant", tenant) == []


def test_show_says_who_is_online(load, family, device, shared_cluster):
    device(PahoV5, family.b).connect(shared_cluster.nodes[0]).become_callable()
    assert load("device", "show", family.b.id)["online"] is True
    assert load("device", "show", family.c.id)["online"] is False


@pytest.mark.parametrize("via", ["http", "mqtt", "coap"])
def test_one_command_is_a_device_and_another_calls_it(via, family, shared_cluster, tmp_path):
    """Both through other nodes, with bodies of several blocks of CoAP; who is ended is offline at once."""
    called_at, calling_at = (f"127.0.0.1:{getattr(node, f'{via}_port')}" for node in shared_cluster.nodes)
    long = {"text": "x" * 3_000}
    target = Process(
        "emulate",
        [built("switchboard"), "device", "emulate", "--via", via, "--at", called_at, "--reply", json.dumps(long)],
        tmp_path,
        env={"SWITCHBOARD_DEVICE_TOKEN": family.b.token},
    )

    def call(*arguments):
        command = ("call", "--via", via, "--at", calling_at, "--to", family.b.id, "--timeout-ms", "20000", *arguments)
        return run(built("switchboard"), *command, env={"SWITCHBOARD_DEVICE_TOKEN": family.a.token})

    try:
        assert json.loads(call("--connect-timeout-ms", "20000", json.dumps(long)).ok().out) == long
        heard = json.loads(target.wait_for_line("the call", lambda line: line, "out"))
        assert (heard["method"], heard["params"]) == ("onMsg", long)
        assert json.loads(call("null").ok().out) == long
        target.interrupt()
        assert target.wait() == 0, target.err
        until("it is offline", lambda: "No active connection" in call().out)
        nobody = run(built("switchboard"), "device", "listen", "--via", via, "--at", called_at, "--token", "of nobody")
        assert (nobody.code, nobody.err.splitlines()[-1]) == (1, "error: no device has this access token")
    finally:
        target.stop()


def test_what_cannot_be_is_refused_in_words(cli, tenant, shared_cluster):
    cli("device", "add", "Pump", "--tenant", tenant).ok()
    for arguments, words in [
        (("device", "add", "Pump", "--tenant", tenant), "this name is taken"),
        (("device", "add", "Other", "--tenant", "Nobody's"), "there is no tenant"),
        (("device", "add", "Other", "--tenant", tenant, "--customer", "East"), "there is no customer"),
        (("device", "show", "no such device"), "there is no device"),
        (("device", "remove", str(uuid.uuid4()), "--yes"), "there is no device"),
        (("customer", "add", "North", "--tenant", tenant), "this name is taken"),
        (("tenant", "add", tenant), "this name is taken"),
        (("device", "remove", "Pump"), "--yes"),
    ]:
        ran = cli(*arguments)
        assert ran.code == 1 and words in ran.err and ran.err.startswith("error: "), ran
        assert "panicked" not in ran.err


def test_tables_for_people(cli, family):
    table = cli("device", "list", "--customer", family.customer).ok().out.splitlines()
    assert table[0].split() == ["ID", "NAME", "CUSTOMER", "TENANT", "TYPE", "LABELS"]
    assert [line.split()[0] for line in table[1:]] == [family.a.id, family.b.id, family.c.id]


def test_customers_and_tenants(cli, load, tenant):
    assert {it["name"] for it in load("customer", "list", "--tenant", tenant)} == {"North", "South"}
    assert load("customer", "rename", "North", "Far North", "--tenant", tenant)["name"] == "Far North"
    assert load("customer", "remove", "South", "--tenant", tenant, "--yes")["name"] == "South"
    assert {it["name"] for it in load("customer", "list", "--tenant", tenant)} == {"Far North"}
    assert tenant in {it["name"] for it in load("tenant", "list")}


def test_an_import_takes_what_it_can_and_names_the_rest(cli, load, tenant, tmp_path, raw, shared_cluster):
    file, tokens = tmp_path / "fleet.csv", tmp_path / "tokens.csv"
    given, ids = f"token-{uuid.uuid4().hex[:12]}", [str(uuid.uuid4()) for _ in range(2)]
    TOKENS.add(given)
    rows = [
        (tenant, "North", ids[0], "First", given),
        (tenant, "North", "", "Second", ""),
        (tenant, "", ids[1], "Third, unassigned", ""),
        (tenant, "North", "not-an-id", "Fourth", ""),
        (tenant, "Nowhere", "", "Fifth", ""),
        (tenant, "North", "", "First", ""),
        (tenant, "North", "", "Sixth", given),
        (tenant, "North", "", "", ""),
        ("No such tenant", "", "", "Eighth", ""),
    ]
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["tenant", "customer", "id", "name", "token"])
        writer.writerows(rows)
    ran = cli("device", "import", str(file), "--tokens-out", str(tokens))
    assert ran.code == 1
    assert re.search(r"^3 devices added, 6 refused", ran.out, re.MULTILINE), ran
    for line, field in [(5, "id"), (6, "customer"), (7, "name"), (8, "token"), (9, "name"), (10, "tenant")]:
        assert re.search(rf"^line {line}: {field} must be ", ran.err, re.MULTILINE), ran
    assert given not in ran.out + ran.err
    written = {row["name"]: row["token"] for row in csv.DictReader(tokens.open())}
    TOKENS.update(written.values())
    assert set(written) == {"First", "Second", "Third, unassigned"} and written["First"] == given
    assert tokens.stat().st_mode & 0o77 == 0
    for token in written.values():
        until("its token is good", lambda it=token: raw(shared_cluster.nodes[0].mqtt_port).connect(it).code == 0)
    assert {it["name"] for it in load("device", "list", "--tenant", tenant)} == set(written)

    # The same once more changes nothing: who has no id is known by name.
    again = cli("device", "import", str(file), "--json")
    report = json.loads(again.out)
    assert (report["created"], report["unchanged"], len(report["refused"])) == ([], 3, 6)


def test_short_tokens_are_taken_only_where_that_is_said(cli, load, tenant, tmp_path, raw, shared_cluster):
    def short() -> str:
        TOKENS.add(token := uuid.uuid4().hex[:15])
        return token

    add = ("device", "add", "Short", "--tenant", tenant, "--token", token := short())
    refused = cli(*add)
    assert refused.code != 0
    assert "token must be 16 characters or longer" in refused.err and "--weak-token" in refused.err
    assert token not in refused.err
    cli(*add, "--weak-token").ok()
    until("it is good", lambda: raw(shared_cluster.nodes[0].mqtt_port).connect(token).code == 0)
    long = uuid.uuid4().hex[:16]
    TOKENS.add(long)
    file = tmp_path / "fleet.csv"
    file.write_text(f"name,token\nRow 1,{short()}\nRow 2,{long}\nRow 3,\n")
    ran = cli("device", "import", "--tenant", tenant, "--tokens-out", str(tmp_path / "tokens.csv"), str(file))
    assert (ran.code, ran.out) == (1, "2 devices added, 1 refused.\n"), ran
    assert re.search(r"^line 2: token must be 16 characters or longer", ran.err, re.MULTILINE), ran
    cli("device", "import", "--tenant", tenant, "--weak-token", "--tokens-out", str(tmp_path / "more.csv"), str(file))

    def weak() -> set[str]:
        return {it["name"] for it in load("device", "list", "--weak", "--tenant", tenant)}

    assert weak() == {"Short", "Row 1"}
    assert load("device", "show", "Row 1")["weakToken"] is True
    assert "weakToken" not in load("device", "show", "Row 2")
    rotate = ("device", "rotate-token", "Row 1", "--yes", "--json")
    assert cli(*rotate, "--token", short()).code != 0
    TOKENS.add(json.loads(cli(*rotate).ok().out)["token"])
    assert weak() == {"Short"}
    cli("device", "rename", "Short", "Still short").ok()
    assert weak() == {"Still short"}, "other changes leave it"
    for name in (tmp_path / "tokens.csv", tmp_path / "more.csv"):
        TOKENS.update(row["token"] for row in csv.DictReader(name.open()))


def test_what_was_exported_can_be_imported(cli, load, tenant, new_cluster, tmp_path):
    cli("device", "add", "Pump", "--tenant", tenant, "--customer", "North").ok()
    exported = tmp_path / "all.json"
    exported.write_text(cli("device", "export").ok().out)
    assert not [token for token in TOKENS if token in exported.read_text()]
    other = new_cluster(nodes=0, routers=0)
    other.accounts.cli("device", "import", str(exported), "--tokens-out", str(tmp_path / "tokens.csv")).ok()
    columns = ("id", "name", "tenant", "customer")
    there = json.loads(other.accounts.cli("device", "list", "--json").ok().out)
    assert [[it[c] for c in columns] for it in there] == [[it[c] for c in columns] for it in load("device", "list")]
    TOKENS.update(row["token"] for row in csv.DictReader((tmp_path / "tokens.csv").open()))


def test_an_import_from_standard_input(cli, load, tenant):
    rows = [{"name": f"Valve {number}", "customer": "South"} for number in range(3)]
    ran = cli("device", "import", "--tenant", tenant, "--json", "-", stdin=json.dumps(rows)).ok()
    created = json.loads(ran.out)["created"]
    TOKENS.update(it["token"] for it in created)
    assert len({it["token"] for it in created}) == 3
    listed = load("device", "list", "--tenant", tenant, "--customer", "South")
    assert [it["name"] for it in listed] == ["Valve 0", "Valve 1", "Valve 2"]


def test_without_nats_it_says_what_to_do():
    ran = run(built("switchboard"), "device", "list", "--nats", "nats://127.0.0.1:9")
    assert ran.code == 1
    assert "127.0.0.1:9" in ran.err and "switchboard up" in ran.err


def test_a_wrong_flag_is_a_usage_error():
    assert run(built("switchboard"), "device", "list", "--nonsense").code == 2
    assert run(built("switchboard"), "device", "list", "--set", "mqtt.nonsense=1").code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("call --to X", "--from names it"),
        ("call --from Y --to X {", "must be JSON"),
        ("call --from Y --to X --at node:1883", "they go with --via"),
        ("call --via http --to X", "which device calls?"),
        ("call --via coap --token t --to X --tls", "CoAP has no TLS"),
        ("trace --from Y --to X {", "must be JSON"),
        ("tail --bodies 10", "say of whom"),
        ("device emulate --token t --via http --reply {", "--reply must be JSON"),
    ],
)
def test_flags_that_do_not_go_together_are_a_usage_error(words, said):
    """Before anybody is asked: there is no NATS here."""
    ran = run(built("switchboard"), *words.split(), env={"SWITCHBOARD_NATS__URL": "nats://127.0.0.1:9"})
    assert (ran.code, said in ran.err) == (2, True), ran.err


def test_a_timeout_that_is_too_long_is_a_usage_error(cli, family):
    devices = ["--from", family.a.id, "--to", family.b.id]
    for command in ("call", "trace"):
        ran = cli(command, *devices, "--timeout-ms", "70000")
        assert ran.code == 2 and "1 to 60000" in ran.err
    ran = cli("call", *devices, "--timeout-ms", "5", "--connect-timeout-ms", "6")
    assert ran.code == 2 and "at most the timeout" in ran.err
