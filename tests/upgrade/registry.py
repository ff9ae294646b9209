"""What becomes of what the newer build has stored, when the older one comes back?"""

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import said
from harness.accounts import Accounts, Identity, identity
from harness.apps import App
from harness.cluster import Api, Cluster
from harness.devices import PahoV5
from harness.devices.device import echo
from harness.waiting import until

TENANT = "Upgraded"
POLICY = """permit (principal is Device, action, resource) when {
  principal.hasTag("side") && principal.getTag("side") == "calls"
};
"""
HERE, ELSEWHERE = "127.0.0.0/8", "10.0.0.0/8"


@dataclass
class Fact:
    """What holds after a rollback, or is lost by it."""

    what: str
    holds: bool
    # Else it is what the page for operators warns of.
    is_promised: bool = True


@dataclass
class Written:
    """What the newer build's command has written."""

    caller: Identity
    target: Identity
    here: App
    elsewhere: App


def write(cluster: Cluster, folder: Path) -> Written:
    """A tenant with a policy of its own, two devices with labels and a type, and applications with networks."""
    accounts = cluster.accounts
    caller, target = (identity(name, "Customer U", TENANT) for name in ("Caller", "Target"))
    accounts.add(caller, target)
    for it, side in ((caller, "calls"), (target, "answers")):
        accounts.cli("device", "label", "set", it.id, f"side={side}").ok()
    accounts.cli("device", "retype", target.id, "lamp").ok()
    policy = folder / "sides.cedar"
    policy.write_text(POLICY)
    accounts.cli("policy", "put", str(policy), "--tenant", TENANT).ok()
    accounts.cli("policy", "remove", "built-in", "--tenant", TENANT).ok()
    here, elsewhere = (_app(accounts, name, network) for name, network in (("Here", HERE), ("Elsewhere", ELSEWHERE)))
    return Written(caller, target, here, elsewhere)


def read(cluster: Cluster, written: Written) -> list[Fact]:
    """What processes and the command of the older build make of it."""
    accounts, facts = cluster.accounts, []
    shown = json.loads(accounts.cli("device", "show", written.target.id, "--json").ok().out)
    facts.append(Fact("a device's name, type and labels", _parts(shown) == ("Target", "lamp", {"side": "answers"})))
    here, there = cluster.nodes
    target = PahoV5(written.target).connect(here).become_callable(echo)
    caller = PahoV5(written.caller).connect(there).become_callable(echo)
    try:
        facts.append(Fact("its token; a policy that permits a call", caller.send_msg(written.target, "1").text() == "1"))
        facts.append(Fact("a policy that denies one", target.send_msg(written.caller, "2").text() == said.DENIED))
        facts.append(Fact("an application's key", _calls(cluster.apis[0], written.here, written.target) == 200))
        refused = _calls(cluster.apis[0], written.elsewhere, written.target) == 403
        facts.append(Fact("a key counts from its networks alone", refused, is_promised=False))
    finally:
        caller.close()
        target.close()
    facts.append(Fact("the audit's chains, of records by both", accounts.cli("audit", "verify").code == 0))
    accounts.cli("app", "key", written.here.id).ok()
    return facts


def read_again(cluster: Cluster, written: Written) -> Fact:
    """What the newer command finds of a record that the older one has changed."""
    apps = json.loads(cluster.accounts.cli("app", "list", "--json").ok().out)
    app = next(it for it in apps if it["id"] == written.here.id)
    kept = app.get("networks") == [HERE]
    return Fact("an application's networks, once the older command has given it another key", kept, is_promised=False)


def _app(accounts: Accounts, name: str, network: str) -> App:
    shown = json.loads(accounts.cli("app", "add", name, "--tenant", TENANT, "--network", network, "--json").ok().out)
    return App(shown["id"], shown["name"], shown["key"])


def _parts(shown: dict[str, Any]) -> tuple[Any, ...]:
    return shown["name"], shown["type"], shown["labels"]


def _calls(api: Api, app: App, target: Identity) -> int:
    def status() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=15)
        headers = {"Authorization": app.bearer, "Content-Type": "application/json"}
        connection.request("POST", f"/v1/devices/{target.id}/calls", '{"params":3}', headers)
        status = connection.getresponse().status
        connection.close()
        return status

    # An authorizer may hear of a key a moment later than its command has ended.
    return until("the key is known", lambda: None if (it := status()) == 401 else it)
