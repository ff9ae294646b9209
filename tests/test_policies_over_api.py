"""Are a tenant's policies asked and replaced over the API as by the command? With places of faults, versions and records."""

import json
from urllib.parse import quote

import pytest
from harness.accounts import TOKENS, identity
from harness.apps import App
from harness.processes import run
from harness.programs import built
from harness.raw_http import RawHttp

ROOMS = """permit (principal is Device, action, resource) when {
  principal.hasTag("room") && resource.hasTag("room") && principal.getTag("room") == resource.getTag("room")
};
"""
LOCKED = 'forbid (principal is App, action == Action::"call", resource) when { context.method == "open" };\n'


class Policed:
    """A tenant of two devices, its applications, and how they are asked."""

    def __init__(self, cluster, tenant: str) -> None:
        self.cluster, self.tenant, self.cli = cluster, tenant, cluster.accounts.cli
        self.lamp, self.door = (identity(f"{it} of {tenant}", tenant=tenant) for it in ("lamp", "door"))
        # With a family the tenant that others wait for is there.
        cluster.accounts.family()
        cluster.accounts.add(self.lamp, self.door)
        self.admin, self.observer = (self._app(role) for role in ("admin", "observer"))
        cluster.accounts.wait_heard()

    def _app(self, role: str) -> App:
        made = json.loads(self.cli("app", "add", role, "--tenant", self.tenant, "--role", role, "--json").ok().out)
        TOKENS.add(made["key"])
        return App(made["id"], made["name"], made["key"])

    def ask(self, method, path, body=None, by=None, **headers):
        text, kind = ("", {}) if body is None else (json.dumps(body), {"Content_Type": "application/json"})
        with RawHttp(self.cluster.apis[0].port) as http:
            return http.ask(method, f"/v1/policies{path}", text, Authorization=(by or self.admin).bearer, **kind, **headers)

    def over_api(self, *arguments):
        url = f"http://127.0.0.1:{self.cluster.apis[0].port}"
        return run(built("switchboard"), "policy", *arguments, env={"SWITCHBOARD_API": url, "SWITCHBOARD_KEY": self.admin.key})


@pytest.fixture
def policed(shared_cluster, request):
    return Policed(shared_cluster, f"Tenant of {request.node.name}")


def test_policies_are_asked_and_replaced(policed):
    shown = policed.ask("GET", "", by=policed.observer)
    assert (shown.json["version"], shown.json["builtIn"], list(shown.json["texts"])) == (0, True, ["built-in"])
    wrong = {"rooms": ROOMS, "bad": 'permit (principal, action, resource) when {\n  context.hours > 1\n};\n'}
    for method, path in [("POST", "/check"), ("POST", "/diff"), ("PUT", ""), ("PUT", "/shadow")]:
        refused = policed.ask(method, path, {"texts": wrong})
        assert (refused.status, refused.json["type"].split(":")[-1], refused.json["field"]) == (422, "invalid_policies", "texts")
        for fault in refused.json["faults"]:
            # Where the command says it is.
            assert (fault["text"], fault["line"], f"bad:2:{fault['column']}: " in refused.json["detail"]) == ("bad", 2, True)
    assert policed.ask("POST", "/check", {"texts": {"rooms": ROOMS}}).json == {"policies": 1, "labels": ["room"], "readsNames": False}

    # Nobody's change is lost, and each has its record and its version.
    state = shown.headers["etag"]
    put = policed.ask("PUT", "?reason=two+rooms", {"texts": {"rooms": ROOMS}, "utcOffsetMinutes": 60}, If_Match=state)
    assert (put.status, put.json["version"], put.json["builtIn"], put.json["utcOffsetMinutes"]) == (200, 1, False, 60)
    assert put.json["policies"] == [{"effect": "permit", "text": "rooms", "line": 1, "name": None}]
    assert policed.ask("PUT", "", {"texts": {}}, If_Match=state).status == 412
    [record] = json.loads(policed.cli("audit", "query", "--tenant", policed.tenant, "--kind", "policy", "--json").ok().out)
    assert (record["what"], record["who"], record["why"]) == ("rooms added", f"application {policed.admin.id}", "two rooms")
    assert [it["why"] for it in policed.ask("GET", "/versions").json["versions"]] == ["two rooms"]
    assert policed.ask("GET", "/versions/1").json["texts"] == {"rooms": ROOMS}
    assert policed.ask("GET", "/versions/2").status == 404

    lamp, door = quote(policed.lamp.name), quote(policed.door.name)
    why = policed.ask("GET", f"/explain?from={lamp}&to={door}", by=policed.observer).json
    assert (why["allowed"], why["version"], why["policies"][0]["policy"]) == (False, 1, "permit rooms:1")
    assert policed.ask("GET", f"/whom?from={lamp}").json["devices"] == []
    for it in (policed.lamp, policed.door):
        policed.cli("device", "label", "set", it.id, "room=12").ok()
    assert policed.ask("GET", f"/explain?from={lamp}&to={door}&action=list").json["decidedBy"] == ["permit rooms:1"]
    assert [it["name"] for it in policed.ask("GET", f"/whom?from={lamp}").json["devices"]] == [policed.door.name]
    assert [it["id"] for it in policed.ask("GET", f"/who?to={door}").json["devices"]] == [policed.lamp.id]
    # With whom the accounts look how far authorizers are: of no room.
    last, *others = policed.ask("GET", f"/whom?app={policed.observer.id}").json["devices"]
    assert [it["name"] for it in others] == [policed.door.name, policed.lamp.name]
    page = policed.ask("GET", f"/whom?app={policed.observer.id}&limit=1&after={quote(last['name'])}").json
    assert (page["devices"], page["next"]) == (others[:1], policed.door.name)
    assert policed.ask("GET", f"/whom?app={policed.observer.id}&after={door}").json == {"devices": others[1:]}

    assert policed.ask("POST", "/diff").status == 404
    shadow = policed.ask("PUT", "/shadow", {"texts": {"rooms": ROOMS, "locked": LOCKED}})
    assert (shadow.status, shadow.json["version"]) == (200, 2)
    differs = policed.ask("POST", "/diff?method=open").json
    assert (differs["more"], differs["fewer"], {it["from"] for it in differs["examples"]}) == (0, 6, {"admin", "observer"})
    # Without texts the built-in rule holds, by which nobody's devices call nobody.
    without = policed.ask("POST", "/diff", {"texts": {}}).json
    assert (without["more"], without["fewer"]) == (0, 4)
    assert policed.ask("DELETE", "/shadow").status == 204
    assert policed.ask("GET", "/shadow").status == 404
    for query, field in [("explain", "to"), (f"explain?to={door}", "from"), ("who?to=nobody", "to"), (f"who?to={door}&hour=24", "hour")]:
        assert policed.ask("GET", f"/{query}").json["field"] == field, query


def test_the_command_does_over_the_api_what_it_does_over_nats(policed, tmp_path):
    rooms, locked = tmp_path / "rooms.cedar", tmp_path / "locked.cedar"
    rooms.write_text(ROOMS)
    locked.write_text(LOCKED)
    of, over_api = ("--tenant", policed.tenant, "--json"), policed.over_api
    direct = lambda *arguments: json.loads(policed.cli("policy", *arguments).out)
    over = lambda *arguments: json.loads(over_api(*arguments, "--json").out)
    assert over("put", str(rooms), "--as", "Ann") == {"version": 1, "texts": ["built-in", "rooms"]}
    assert over("remove", "built-in") == {"version": 2, "texts": ["rooms"]}
    assert over("get", "rooms") == direct("get", "rooms", *of) == {"name": "rooms", "version": 2, "text": ROOMS}
    assert over("external", "nats:quota") == {"version": 3, "texts": ["rooms"], "external": "nats:quota"}
    assert "external" not in over("external", "none")
    assert over("put", str(locked), "--shadow") == {"version": 5, "texts": ["locked", "rooms"], "shadow": True}
    for asked in [("list",), ("history",), ("diff", "--shadow"), ("diff", str(locked))]:
        assert over(*asked) == direct(*asked, *of), asked
    for it in (policed.lamp, policed.door):
        policed.cli("device", "label", "set", it.id, "room=12").ok()
    lamp, door = policed.lamp.name, policed.door.name
    app = policed.observer.id
    for asked in [
        *[("explain", "--from", lamp, "--to", door), ("explain", "--app", app, "--to", door, "--by", "open")],
        *[("whom", "--may", lamp), ("whom", "--app", app), ("whom", "--app", app, "--label", "room=13")],
        *[("who", "--may-list", door), ("who", "--may-call", door, "--name", "lamp"), ("check", str(rooms))],
    ]:
        assert over(*asked) == direct(*asked, "--json"), asked
    assert [it["name"] for it in over("whom", "--app", app, "--label", "room=12")] == [door, lamp]
    assert over("promote") == {"version": 5, "texts": ["locked", "rooms"]}
    assert "the tenant has no shadow" in over_api("drop-shadow").err
    assert over("rollback", "2") == {"version": 6, "texts": ["rooms"]}
    assert "because" not in over_api("explain", "--from", lamp, "--to", door).ok().out
    locked.write_text("permit (principal, action, resource)")
    assert "locked:1:" in over_api("check", str(locked)).err
    assert "locked:1:" in over_api("put", str(locked)).err
    assert over_api("explain", "--app", app, "--to", door, "--by", "x").ok().out.startswith(f"observer call {door}: allowed, its scope is")
