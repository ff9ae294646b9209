"""How is the registry kept over HTTP? Within a key's role and scope, recorded, and never over somebody else's change."""

import json
from typing import Any
from urllib.parse import quote

import pytest
from harness.accounts import TOKENS
from harness.apps import App, add_app
from harness.devices import PahoV5
from harness.raw_http import RawHttp, Response
from harness.waiting import until

ROLES = ["caller", "observer", "operator", "admin"]


class Kept:
    """The API, as one application has it."""

    def __init__(self, http: RawHttp, app: App) -> None:
        self._http, self.app = http, app

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Response:
        text = "" if body is None else json.dumps(body)
        kind = {} if body is None else {"Content_Type": "application/json"}
        response = self._http.ask(method, f"/v1/{path}", text, Authorization=self.app.bearer, **kind, **headers)
        if response.status in (200, 201):
            TOKENS.update(it for it in (response.json.get("token"), response.json.get("key")) if it)
        return response

    def ok(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        response = self.ask(method, path, body, **headers)
        assert response.status in (200, 201, 204), response
        return response.json if response.body else None


@pytest.fixture(scope="module")
def apps(shared_cluster) -> dict[str, App]:
    shared_cluster.accounts.family()
    return {role: add_app(shared_cluster.accounts, "--role", role) for role in ROLES}


@pytest.fixture
def keep(shared_cluster, apps):
    with RawHttp(shared_cluster.apis[0].port) as http:
        yield lambda app: Kept(http, apps[app] if isinstance(app, str) else app)


def problem(response: Response) -> tuple[int, str, str | None]:
    """Status, name of the problem, and what it is about."""
    assert response.headers["content-type"] == "application/problem+json", response
    return response.status, response.json["type"].removeprefix("urn:switchboard:problem:"), response.json.get("field")


def test_a_device_is_kept_from_its_first_token_to_its_end(shared_cluster, keep, node, family, device):
    operator, name = keep("operator"), f"Pump of {family.customer}"
    customer = operator.ok("GET", f"customers/{quote(family.customer)}")["id"]
    added = operator.ok("POST", "devices", {"name": name, "customer": customer, "labels": {"room": "12"}, "type": "pump"})
    identity = type(family.a)(added["id"], name, added["token"], customer=family.customer)
    shared_cluster.accounts.wait_heard()
    device(PahoV5, identity).connect(node).close()

    # Nobody's change is lost: of two who have read the same, the second is told.
    path = f"devices/{quote(name)}"
    shown = operator.ask("GET", path)
    assert shown.json["labels"] == {"room": "12"}
    changed = operator.ask("PATCH", path, {"labels": {"room": None, "site": "north"}}, If_Match=shown.headers["etag"])
    assert (changed.status, changed.json["labels"], "token" in changed.json) == (200, {"site": "north"}, False)
    late = operator.ask("PATCH", path, {"type": "fan"}, If_Match=shown.headers["etag"])
    assert problem(late) == (412, "changed", None)
    assert operator.ok("PATCH", path, {"type": "fan"}, If_Match=changed.headers["etag"])["type"] == "fan"

    rotated = operator.ok("POST", f"{path}/token")
    assert rotated["token"] not in ("", added["token"])
    assert operator.ok("PATCH", f"devices/{added['id']}", {"customer": None, "name": f"{name} 2"})["customer"] is None
    assert problem(operator.ask("DELETE", path)) == (404, "unknown_device", None)
    operator.ok("DELETE", f"devices/{added['id']}?reason=of+no+use")

    # Each of it as the command records it, in the application's name.
    records = json.loads(shared_cluster.accounts.cli("audit", "query", "--device", added["id"], "--json").ok().out)
    assert [it["kind"].removeprefix("device.") for it in records] == [
        *["add", "label", "label", "retype", "rotate-token", "rename", "unassign", "remove"]
    ]
    assert {it["who"] for it in records} == {f"application {operator.app.id}"}
    assert records[-1]["why"] == "of no use" and operator.app.key_id in records[-1]["from"]
    over_api = keep("observer").ok("GET", f"audit?device={added['id']}&limit=500")
    while "next" in over_api and not over_api["records"]:
        over_api = keep("observer").ok("GET", f"audit?device={added['id']}&limit=500&after={over_api['next']}")
    assert [it["sequence"] for it in over_api["records"]] == [it["sequence"] for it in records]


def test_customers_applications_and_keys(shared_cluster, keep, family):
    admin = keep("admin")
    name = f"Waterworks of {family.customer}"
    customer = admin.ok("POST", "customers", {"name": name})
    assert problem(admin.ask("POST", "customers", {"name": name})) == (409, "taken", "name")
    renamed = admin.ok("PATCH", f"customers/{quote(name)}", {"name": f"{name} 2"})
    assert renamed == customer | {"name": f"{name} 2"}
    assert renamed in admin.ok("GET", f"customers?after={quote(name)}&limit=500")["customers"]

    made = admin.ok("POST", "apps", {"name": name, "role": "operator", "customers": [customer["id"]], "days": 1})
    assert made["keys"][0]["expiresS"] - made["keys"][0]["madeS"] == 86_400
    second = admin.ok("POST", f"apps/{made['id']}/keys")
    assert problem(admin.ask("POST", f"apps/{made['id']}/keys")) == (409, "keys_full", None)
    shared_cluster.accounts.wait_heard()
    narrow = keep(App(made["id"], made["name"], second["key"]))
    assert [it["id"] for it in narrow.ok("GET", "customers")["customers"]] == [customer["id"]]
    kept = narrow.ok("POST", "devices", {"name": name, "customer": customer["id"]})
    assert problem(admin.ask("DELETE", f"customers/{customer['id']}")) == (409, "not_empty", None)
    admin.ok("DELETE", f"devices/{kept['id']}")
    admin.ok("DELETE", f"apps/{made['id']}/keys/{second['key'].split('_')[1]}")
    # At once: whoever keeps the registry is looked up there, whatever is remembered of the key.
    assert problem(narrow.ask("GET", "customers")) == (401, "unauthenticated", None)
    admin.ok("DELETE", f"apps/{quote(name)}")
    admin.ok("DELETE", f"customers/{customer['id']}")
    assert problem(admin.ask("GET", f"apps/{made['id']}")) == (404, "unknown_app", None)
    assert all(made["key"] not in it.body for it in [admin.ask("GET", "apps"), admin.ask("GET", "audit")])


def test_each_role_may_what_it_may_and_no_more(keep, family):
    asked = {
        "observer": [
            *[("GET", "audit?limit=1"), ("GET", "policies"), ("GET", "policies/shadow"), ("GET", "policies/versions")],
            *[("GET", "policies/versions/1"), ("POST", "policies/check"), ("POST", "policies/diff")],
            *[("GET", f"policies/{what}") for what in ("explain", "who", "whom")],
        ],
        "operator": [
            *[("GET", "customers"), ("GET", "tenants"), ("POST", "customers"), ("PATCH", "customers/x")],
            *[("DELETE", "customers/x"), ("POST", "devices"), ("PATCH", "devices/x"), ("DELETE", "devices/x")],
            *[("POST", "devices/x/token")],
        ],
        "admin": [
            *[("GET", "apps"), ("POST", "apps"), ("GET", "apps/x"), ("DELETE", "apps/x"), ("POST", "apps/x/keys")],
            *[("DELETE", "apps/x/keys/0"), ("POST", "tenants"), ("PATCH", "tenants/x"), ("DELETE", "tenants/x")],
            *[("PUT", "policies"), ("PUT", "policies/shadow"), ("DELETE", "policies/shadow")],
        ],
    }
    for needed, requests in asked.items():
        for role in ROLES:
            for method, path in requests:
                response = keep(role).ask(method, path)
                is_refused = response.status == 403 and "role_too_low" in response.body
                assert is_refused == (ROLES.index(role) < ROLES.index(needed)), (role, method, path, response)


def test_what_is_outside_of_a_scope_is_not_there_and_nothing_gets_out_of_it(shared_cluster, keep, family):
    accounts, other = shared_cluster.accounts, shared_cluster.accounts.family()
    narrow = keep(add_app(accounts, "--role", "admin", "--customer", family.customer))
    own = narrow.ok("GET", f"customers/{quote(family.customer)}")["id"]
    others = keep("operator").ok("GET", f"customers/{quote(other.customer)}")["id"]
    for method, path in [("GET", f"customers/{others}"), ("DELETE", f"devices/{other.a.id}"), ("PATCH", f"devices/{other.a.id}")]:
        assert narrow.ask(method, path, {} if method == "PATCH" else None).status == 404
    outside = (403, "scope_too_narrow", None)
    for method, path, body in [
        ("POST", "devices", {"name": "x", "customer": others}),
        ("POST", "devices", {"name": "x"}),
        ("PATCH", f"devices/{family.a.id}", {"customer": None}),
        ("POST", "customers", {"name": "x"}),
        ("POST", "apps", {"name": "x", "role": "admin"}),
        ("GET", "audit", None),
        ("PATCH", "tenants/x", {"name": "x"}),
    ]:
        assert problem(narrow.ask(method, path, body)) == outside, (method, path, body)
    assert narrow.ok("PATCH", f"devices/{family.a.id}", {"labels": {"a": "b"}})["customer"] == own

    # Another tenant is there for who keeps all of them alone.
    admin, tenant = keep("admin"), f"Tenant of {family.customer}"
    assert problem(admin.ask("POST", "tenants", {"name": tenant})) == outside
    everywhere = keep(add_app(accounts, "--role", "admin", "--all-tenants"))
    made = everywhere.ok("POST", "tenants", {"name": tenant})
    assert problem(admin.ask("GET", f"tenants/{made['id']}")) == (404, "unknown_tenant", None)
    assert problem(admin.ask("GET", f"customers?tenant={made['id']}")) == (422, "invalid_parameter", "tenant")
    customer = everywhere.ok("POST", f"customers?tenant={made['id']}", {"name": "Their customer"})
    assert problem(admin.ask("GET", f"customers/{customer['id']}")) == (404, "unknown_customer", None)
    foreign = admin.ask("POST", "devices", {"name": "x", "customer": customer["id"]})
    assert problem(foreign) == (422, "invalid_member", "customer")
    assert problem(everywhere.ask("DELETE", f"tenants/{made['id']}")) == (409, "not_empty", None)
    everywhere.ok("DELETE", f"customers/{customer['id']}")
    everywhere.ok("DELETE", f"tenants/{made['id']}")
    # Who keeps one tenant takes the key of nobody who keeps all.
    assert problem(admin.ask("DELETE", f"apps/{everywhere.app.id}")) == outside


def test_bad_input_is_named(keep, family):
    admin = keep("admin")
    for method, path, body, field in [
        ("POST", "devices", {}, "name"),
        ("POST", "devices", {"name": 1}, "name"),
        ("POST", "devices", {"name": " x"}, "name"),
        ("POST", "devices", {"name": "x", "id": "x"}, "id"),
        ("POST", "devices", {"name": "x", "customer": family.a.id}, "customer"),
        ("POST", "devices", {"name": "x", "labels": {"a": 1}}, "labels"),
        ("POST", "devices", {"name": "x", "token": "short"}, "token"),
        ("POST", "devices", {"name": "x", "nmae": "x"}, "nmae"),
        ("PATCH", f"devices/{family.a.id}", {"type": ""}, "type"),
        ("PATCH", f"devices/{family.a.id}", {"token": "x"}, "token"),
        ("POST", "apps", {"name": "x", "role": "king"}, "role"),
        ("POST", "apps", {"name": "x", "days": 0}, "days"),
        ("POST", "apps", {"name": "x", "customers": []}, "customers"),
        ("GET", "audit?limit=0", None, "limit"),
        ("GET", "audit?device=x", None, "device"),
        ("GET", "customers?nmae=x", None, "nmae"),
        ("DELETE", f"devices/{family.a.id}?reason={'x' * 501}", None, "reason"),
    ]:
        status, _, named = problem(admin.ask(method, path, body))
        assert (status, named) == (422, field), (method, path, body)
    wrong = admin.ask("PATCH", f"devices/{family.a.id}", {}, If_Match="x")
    assert problem(wrong) == (422, "invalid_parameter", "If-Match")


def test_a_copy_keeps_nothing_unless_it_is_told_to(new_cluster):
    cluster = new_cluster(apis=1)
    cluster.accounts.family()
    with RawHttp(cluster.apis[0].port) as http:
        admin = Kept(http, add_app(cluster.accounts, "--role", "admin"))
        assert problem(admin.ask("GET", "customers")) == (403, "administration_off", None)
        until("calls go on", lambda: admin.ask("GET", "devices").status == 200)
