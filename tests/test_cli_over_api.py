"""Does the command do over an API what it does over NATS? With a key out of the environment or of a file."""

import csv
import json
import os
import zlib

import pytest
from harness import said
from harness.accounts import TENANT, TOKENS
from harness.apps import App, add_app
from harness.devices import PahoV5
from harness.processes import Ran, run
from harness.programs import built
from harness.waiting import until

ENDED = "swbk_0123456789abcdef_"


@pytest.fixture(scope="module")
def admin(shared_cluster) -> App:
    shared_cluster.accounts.family()
    return add_app(shared_cluster.accounts, "--role", "admin")


@pytest.fixture
def url(shared_cluster) -> str:
    return f"http://127.0.0.1:{shared_cluster.apis[0].port}"


@pytest.fixture
def cli(url, admin):
    def cli(*arguments: str, key: str = admin.key) -> Ran:
        ran = run(built("switchboard"), *arguments, env={"SWITCHBOARD_API": url, "SWITCHBOARD_KEY": key})
        assert key not in ran.out + ran.err
        return ran

    return cli


def secret(shown: dict) -> dict:
    """What was shown, its secrets known to the test that looks for them elsewhere."""
    TOKENS.update(it for it in (shown.get("token"), shown.get("key")) if it)
    return shown


def test_devices_are_kept(shared_cluster, cli, family):
    name = f"Over the API of {family.customer}"
    added = secret(json.loads(cli("device", "add", name, "--customer", family.customer, "--label", "room=1", "--json").ok().out))
    direct = shared_cluster.accounts.cli
    # One view, whoever is asked.
    shown = json.loads(direct("device", "show", name, "--json").ok().out)
    assert {key: value for key, value in added.items() if key != "token"} == {key: shown[key] for key in added if key != "token"}
    shared_cluster.accounts.wait_heard()
    assert json.loads(cli("device", "show", name, "--json").ok().out)["labels"] == {"room": "1"}
    assert "room=2" in cli("device", "label", "set", name, "room=2").ok().out
    assert "no label" in cli("device", "label", "remove", name, "site").err
    cli("device", "retype", name, "pump", "--why", "it is one").ok()
    cli("device", "unassign", name).ok()
    cli("device", "assign", name, family.customer).ok()
    assert secret(json.loads(cli("device", "rotate-token", name, "--yes", "--json").ok().out))["token"] != added["token"]
    cli("device", "rename", name, f"{name} 2").ok()
    shared_cluster.accounts.wait_heard()
    listed = [json.loads(of("device", "list", "--customer", family.customer, "--json").ok().out) for of in (cli, direct)]
    kept = [[{k: v for k, v in it.items() if k != "weakToken"} for it in all_] for all_ in listed]
    assert kept[0] == kept[1] and f"{name} 2" in [it["name"] for it in kept[0]]
    sought = ("--type", "pump", "--label", "room=2", "--label", "room", "--name", f"over*{family.customer} 2")
    assert [it["id"] for it in json.loads(cli("device", "list", *sought, "--json").ok().out)] == [added["id"]]
    cli("device", "remove", f"{name} 2", "--yes").ok()
    assert "There is no such device" in cli("device", "remove", added["id"], "--yes").err
    records = json.loads(direct("audit", "query", "--device", added["id"], "--json").ok().out)
    assert json.loads(cli("audit", "query", "--device", added["id"], "--json").ok().out) == records
    assert [it["why"] for it in records if it["kind"] == "device.retype"] == ["it is one"]


def test_a_chain_is_checked_as_over_nats(shared_cluster, cli, family, device):
    of = ("audit", "verify", "--tenant", TENANT, "--json")
    caller = device(PahoV5, family.a).connect(shared_cluster.nodes[0])
    assert caller.send_msg(shared_cluster.accounts.family().a, "1").text() == said.DENIED

    def chains(cli, *arguments):
        return json.loads(cli(*arguments).ok().out)

    direct = until("both are there", lambda: len(found := chains(shared_cluster.accounts.cli, *of)) == 2 and found)
    assert [it["book"] for it in direct] == ["changes", "denials"]
    for before, chain, prefix in zip(direct, chains(cli, "audit", "verify", "--json"), ("", "denials:"), strict=True):
        assert (chain["tenant"], chain["book"], chain["isWhole"]) == (before["tenant"], before["book"], True)
        assert chain["first"] == before["first"]
        assert chain["records"] >= before["records"] > 0
        head = before["head"]
        cli(*of, "--head", f"{prefix}{head['number']}:{head['hash']}").ok()
        assert "not there as it was" in cli(*of, "--head", f"{prefix}{head['number']}:{'0' * 64}").out
    kinds = [it["kind"] for it in json.loads(cli("audit", "query", "--device", family.a.id, "--json").ok().out)]
    assert "denied.call" in kinds and kinds == [
        it["kind"] for it in json.loads(shared_cluster.accounts.cli("audit", "query", "--device", family.a.id, "--json").ok().out)
    ]


def test_devices_are_imported_and_an_import_is_resumed(shared_cluster, cli, family, tmp_path):
    file, tokens = tmp_path / "devices.csv", tmp_path / "tokens.csv"
    name = f"Imported over the API of {family.customer}"
    lines = [f"{name} 1,{family.customer},north", f"{name} 2,,", f"{family.a.name},{family.customer},", f"{name} 3,New of {family.customer},"]
    file.write_text("name,customer,label:site\n" + "\n".join(lines) + "\n")
    refused = cli("device", "import", str(file), "--tokens-out", str(tokens), "--json")
    assert refused.code == 1
    report = json.loads(refused.out)
    assert [it["name"] for it in report["created"]] == [f"{name} 1", f"{name} 2"]
    assert ([it["field"] for it in report["refused"]], report["unchanged"]) == (["customer"], 1)
    kept = {it["name"]: it["token"] for it in csv.DictReader(tokens.open())}
    TOKENS.update(kept.values())
    # As if it had been interrupted: the tokens are there, and of the devices some.
    cli("device", "remove", f"{name} 1", "--yes").ok()
    shared_cluster.accounts.wait_heard()
    report = json.loads(cli("device", "import", "--create", str(file), "--tokens-out", str(tokens), "--json").ok().out)
    assert [it["name"] for it in report["created"]] == [f"{name} 1", f"{name} 3"]
    assert [it["name"] for it in report["resumed"]] == [f"{name} 2"]
    again = {it["name"]: it["token"] for it in csv.DictReader(tokens.open())}
    TOKENS.update(again.values())
    assert {it: again[it] for it in kept} == kept
    direct = json.loads(shared_cluster.accounts.cli("device", "show", f"{name} 1", "--json").ok().out)
    assert (direct["labels"], direct["customerName"]) == ({"site": "north"}, family.customer)
    # With a token of its own that another device has.
    file.write_text(f"name,token\n{name} 4,{family.b.token}\n")
    report = json.loads(cli("device", "import", str(file), "--weak-token", "--json").out)
    assert [it["field"] for it in report["refused"]] == ["token"]


def test_customers_tenants_and_applications_are_kept(shared_cluster, cli, family):
    name = f"Kept over the API, beside {family.customer}"
    cli("customer", "add", name).ok()
    cli("customer", "rename", name, f"{name} 2").ok()
    made = secret(json.loads(cli("app", "add", name, "--customer", f"{name} 2", "--network", "10.0.0.0/8", "--days", "1", "--json").ok().out))
    direct = json.loads(shared_cluster.accounts.cli("app", "list", "--json").ok().out)
    assert [it for it in json.loads(cli("app", "list", "--json").ok().out) if it["id"] == made["id"]] == [
        it for it in direct if it["id"] == made["id"]
    ]
    assert made["networks"] == ["10.0.0.0/8"]
    assert "networks must be" in cli("app", "add", name, "--network", "10.0.0.1/8").err
    second = secret(json.loads(cli("app", "key", made["id"], "--json").ok().out))
    cli("app", "revoke", made["id"], "--key", second["key"].split("_")[1], "--yes").ok()
    cli("app", "remove", made["id"], "--yes").ok()
    assert f"{name} 2" in cli("customer", "list").ok().out
    cli("customer", "remove", f"{name} 2", "--yes").ok()
    assert TENANT in cli("tenant", "list").ok().out
    assert "scope is too narrow" in cli("tenant", "add", "Another").err


def test_a_device_is_called_as_the_application(cli, node, family, device):
    device(PahoV5, family.a).connect(node).become_callable(lambda call: call.answer(json.dumps(call.text)))
    called = cli("call", "--to", family.a.name, "--method", "blink", '{"x":1}').ok()
    assert json.loads(called.out) == '{"method":"blink","params":{"x":1}}' and "answered in" in called.err
    offline = cli("call", "--to", family.b.id, "--json")
    assert (offline.code, json.loads(offline.out)["outcome"], json.loads(offline.out)["seen"]) == (1, "offline", "never")
    assert "leave --from out" in cli("call", "--from", family.a.id, "--to", family.b.id).err


def test_a_key_stands_in_a_file_of_its_owner_alone(tmp_path, url, admin, family):
    (tmp_path / "switchboard").mkdir()
    profiles = tmp_path / "switchboard" / "profiles.toml"
    profiles.write_text(f'[here]\napi = "{url}"\nkey = "{admin.key}"\n')
    ask = lambda *flags: run(built("switchboard"), "customer", "list", *flags, env={"XDG_CONFIG_HOME": str(tmp_path)})
    os.chmod(profiles, 0o644)
    refused = ask("--profile", "here")
    assert (refused.code, "chmod 600" in refused.err, admin.key in refused.err) == (2, True, False)
    os.chmod(profiles, 0o600)
    assert family.customer in ask("--profile", "here").ok().out
    assert family.customer in ask("--api", url).ok().out
    assert "there is no profile" in ask("--profile", "there").err
    assert "there is no key for" in ask("--api", "http://127.0.0.1:1").err


def test_what_an_api_refuses_is_said(shared_cluster, cli, family):
    caller = add_app(shared_cluster.accounts)
    assert "the role operator or above" in cli("device", "rename", family.a.id, "x", key=caller.key).err
    assert "does not take this key" in cli("customer", "list", key=ended_key()).err
    assert "the key is none" in cli("customer", "list", key="swbk_x").err
    assert "over NATS alone" in cli("node", "list").err


def ended_key() -> str:
    """One of the right form, which nobody has."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    body = f"{ENDED}{'A' * 43}"
    left, check = zlib.crc32(body.encode()), ""
    for _ in range(6):
        left, digit = divmod(left, 62)
        check += alphabet[digit]
    return body + check
