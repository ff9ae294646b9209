"""How do applications call devices? Over HTTP with a key, to devices of every protocol."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from harness.accounts import TENANT, TOKENS, identity
from harness.apps import App, add_app, add_key, call
from harness.devices import PROTOCOLS, PahoV5
from harness.processes import run
from harness.programs import built, tool
from harness.raw_http import RawHttp
from harness.waiting import PATIENCE_S, until

ROOT = Path(__file__).parents[1]
NOBODY = "aa435e80-9fce-11e6-8080-000000000000"
JSON = {"Content-Type": "application/json"}


def problem(response) -> tuple[int, str, str]:
    """Status, name of the problem, and whether the device may have seen the call."""
    assert response.headers["content-type"] == "application/problem+json", response
    assert response.json["status"] == response.status
    return response.status, response.json["type"].removeprefix("urn:switchboard:problem:"), response.json["seen"]


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_a_device_of_each_protocol_is_called_by_its_own_method(kind, app, api, node, family, device):
    target = device(kind, family.a).connect(node).become_callable()
    with ThreadPoolExecutor() as pool:
        called = pool.submit(call, api, app, family.a.id, '{"method": "blink \\"x\\"", "params": {"a" : 1.50} }')
        taken = target.next_call()
        assert json.loads(taken.text)["method"] == 'blink "x"'
        assert '"params":{"a" : 1.50}' in taken.text
        taken.answer('{"b" : 2.50}')
        response = called.result()
    assert (response.status, response.body) == (200, '{"b" : 2.50}'), "byte for byte"
    assert response.headers["content-type"] == "application/json"
    assert (response.headers["switchboard-outcome"], response.headers["switchboard-seen"]) == ("answered", "yes")


def test_a_device_is_called_by_name_from_any_copy_and_reads_on_msg(shared_cluster, app, family, device):
    here, there = shared_cluster.nodes
    target = device(PahoV5, family.a).connect(here).become_callable(lambda call: call.answer(json.dumps(call.text)))
    for copy in shared_cluster.apis:
        with RawHttp(copy.port) as http:
            response = call(http, app, quote(family.a.name, safe=""), {"params": [1]})
            assert response.json == '{"method":"onMsg","params":[1]}'
            assert call(http, app, family.a.id).json == '{"method":"onMsg","params":null}'
    target.close()


def test_oneway_ends_when_the_device_has_it(app, api, node, family, device):
    target = device(PahoV5, family.a).connect(node).become_callable()
    response = call(api, app, family.a.id, {"method": "blink", "oneway": True})
    assert (response.status, response.body) == (204, "")
    assert response.headers["switchboard-seen"] == "yes"
    assert target.next_call().text == '{"method":"blink","params":null}'


def test_each_error_says_whether_the_device_may_have_seen_the_call(app, api, node, family, device):
    assert problem(call(api, app, family.a.id)) == (409, "offline", "never")
    assert problem(call(api, app, NOBODY)) == (404, "unknown_device", "never")
    assert problem(call(api, app, "Nobody%20of%20that%20name")) == (404, "unknown_device", "never")
    target = device(PahoV5, family.a).connect(node).become_callable()
    late = call(api, app, family.a.id, {"timeout": 200})
    assert problem(late) == (504, "timed_out", "maybe")
    assert late.json["callId"] == late.headers["switchboard-call"]
    with ThreadPoolExecutor() as pool:
        called = pool.submit(call, api, app, family.a.id)
        target.next_call()
        target.next_call()
        target.vanish()
        assert problem(called.result()) == (502, "lost", "maybe")
    begun = time.monotonic()
    assert problem(call(api, app, family.b.id, {"timeout": 700, "connectTimeout": 300})) == (409, "offline", "never")
    assert 0.3 <= time.monotonic() - begun < PATIENCE_S


def test_a_device_that_connects_in_time_is_called(app, api, node, family, device):
    with ThreadPoolExecutor() as pool:
        called = pool.submit(call, api, app, family.a.id, {"connectTimeout": 10_000})
        device(PahoV5, family.a).connect(node).become_callable(lambda call: call.answer("1"))
        assert called.result().body == "1"


def test_an_application_reaches_its_scope_and_nothing_else_is_there(shared_cluster, api, node, family, device):
    accounts, other = shared_cluster.accounts, shared_cluster.accounts.family()
    for it in (family.a, other.a):
        device(PahoV5, it).connect(node).become_callable(lambda call: call.answer("1"))
    of_customer = add_app(accounts, "--customer", family.customer, "--method", "blink")
    assert call(api, of_customer, family.a.id, {"method": "blink"}).body == "1"
    assert problem(call(api, of_customer, family.a.id)) == (403, "denied", "never")
    for named in (other.a.id, quote(other.a.name)):
        assert problem(call(api, of_customer, named, {"method": "blink"})) == (404, "unknown_device", "never")
    labelled = add_app(accounts, "--label", "zone=north")
    assert problem(call(api, labelled, family.a.id)) == (404, "unknown_device", "never")
    accounts.cli("device", "label", "set", family.a.id, "zone=north").ok()
    until("the label counts", lambda: call(api, labelled, family.a.id).status == 200)
    accounts.cli("tenant", "add", f"Others of {family.customer}").ok()
    foreign = add_app(accounts, "--tenant", f"Others of {family.customer}")
    assert problem(call(api, foreign, family.a.id)) == (404, "unknown_device", "never")


def test_a_key_counts_from_its_networks_alone(shared_cluster, api, family):
    accounts = shared_cluster.accounts
    here = add_app(accounts, "--network", "127.0.0.0/8", "--network", "::1")
    elsewhere = add_app(accounts, "--network", "10.0.0.0/8")
    path = f"/v1/devices/{family.a.id}"
    assert problem(call(api, here, family.a.id)) == (409, "offline", "never")
    # Of a stranger nobody believes where he comes from.
    for headers in ({}, {"X-Forwarded-For": "10.0.0.1"}):
        assert problem(call(api, elsewhere, family.a.id, **headers)) == (403, "denied", "never")
        for asked in (path, "/v1/devices", "/v1/presence"):
            assert problem(api.ask("GET", asked, "", Authorization=elsewhere.bearer, **headers))[:2] == (403, "denied")
        thingsboard = api.ask("POST", f"/api/rpc/oneway/{family.a.id}", '{"method":"x"}', Authorization=elsewhere.bearer, **JSON)
        assert (thingsboard.status, thingsboard.json["errorCode"]) == (401, 10)
        assert thingsboard.headers["www-authenticate"] == "Bearer"
    assert api.ask("GET", "/v1/openapi.json", "").status == 200
    listed = json.loads(accounts.cli("app", "list", "--json").ok().out)
    assert next(it for it in listed if it["id"] == here.id)["networks"] == ["127.0.0.0/8", "::1"]
    assert "from 10.0.0.0/8" in accounts.cli("app", "list").ok().out
    refused = accounts.cli("app", "add", "Nowhere", "--tenant", TENANT, "--network", "10.0.0.1/8")
    assert refused.code == 1 and "networks" in refused.err and "10.0.0.0/8" in refused.err


def test_who_shows_no_key_that_lives_is_nobody(app, api, family):
    path = f"/v1/devices/{family.a.id}/calls"
    wrong_check = app.key[:-1] + ("A" if app.key[-1] != "A" else "B")
    for headers in (
        {},
        {"Authorization": app.key},
        {"Authorization": f"Basic {app.key}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {family.a.token}"},
        {"Authorization": f"Bearer {wrong_check}"},
        {"X-Authorization": f"ApiKey {app.key[:-2]}"},
    ):
        response = api.ask("POST", path, "{}", **JSON, **headers)
        assert problem(response) == (401, "unauthenticated", "never"), headers
        assert response.headers["www-authenticate"] == "Bearer"
        assert app.key not in response.body


def test_an_application_may_what_no_policy_forbids(shared_cluster, api, node, device, tmp_path):
    accounts, tenant = shared_cluster.accounts, "Tenant of policies for applications"
    lamp, lock = (identity(f"{name} of {tenant}", tenant=tenant) for name in ("lamp", "lock"))
    accounts.add(lamp, lock)
    caller = add_app(accounts, "--tenant", tenant)
    for it in (lamp, lock):
        device(PahoV5, it).connect(node).become_callable(lambda call: call.answer("1"))
    accounts.cli("device", "label", "set", lock.id, "kind=lock").ok()
    locks = tmp_path / "locks.cedar"
    locks.write_text('forbid (principal is App, action, resource in Group::"kind=lock") unless { context.method == "status" };')
    differs = json.loads(accounts.cli("policy", "diff", str(locks), "--app", caller.id, "--tenant", tenant, "--json").ok().out)
    assert {(it["action"], it["from"], it["to"], it["now"]) for it in differs["examples"]} == {
        ("call", caller.name, lock.name, False),
        ("list", caller.name, lock.name, False),
    }
    accounts.cli("policy", "put", str(locks), "--tenant", tenant).ok()
    until("the policy is in force", lambda: all(call(api, caller, lock.id).status == 404 for _ in range(12)))
    assert call(api, caller, lamp.id).body == "1"
    assert call(api, caller, lock.id, {"method": "status"}).body == "1"
    listed = api.ask("GET", "/v1/devices", "", Authorization=caller.bearer).json["devices"]
    assert {lamp.id, lock.id} & {it["id"] for it in listed} == {lamp.id}
    explain = ("policy", "explain", "--app", caller.name, "--to", lock.name)
    denied = accounts.cli(*explain)
    assert denied.code == 1 and "denied, forbid locks:1" in denied.out
    why = json.loads(accounts.cli(*explain, "--by", "status", "--json").ok().out)
    assert why["allowed"] and why["inScope"]


def test_a_key_ends_within_a_second_and_its_successor_goes_on(shared_cluster, node, family, device):
    accounts = shared_cluster.accounts
    device(PahoV5, family.a).connect(node).become_callable(lambda call: call.answer("1"))
    first = add_app(accounts, "--days", "1")
    second = add_key(accounts, first)
    refused = accounts.cli("app", "key", first.id)
    assert refused.code == 1 and "2 keys that live" in refused.err
    with RawHttp(shared_cluster.apis[0].port) as here, RawHttp(shared_cluster.apis[1].port) as there:
        assert {call(http, key, family.a.id).status for http in (here, there) for key in (first, second)} == {200}
        accounts.cli("app", "revoke", first.id, "--key", first.key_id, "--yes").ok()
        begun = time.monotonic()
        for http in (here, there):
            until("the key has ended", lambda http=http: call(http, first, family.a.id).status == 401)
        assert time.monotonic() - begun < 1
        assert {call(http, second, family.a.id).status for http in (here, there)} == {200}
        accounts.cli("app", "remove", first.id, "--yes").ok()
        until("all its keys have ended", lambda: {call(http, second, family.a.id).status for http in (here, there)} == {401})
    TOKENS.add(first.key)


def test_bad_input_is_told_what_was_expected(app, api, family):
    for body, expected in (
        ("", (400, "not_json", "never")),
        ("[]", (400, "not_json", "never")),
        ('{"timeout":0}', (422, "invalid_member", "never")),
        ('{"timeout":60001}', (422, "invalid_member", "never")),
        ('{"timeout":100,"connectTimeout":101}', (422, "invalid_member", "never")),
        ('{"method":""}', (422, "invalid_member", "never")),
        ('{"parms":1}', (422, "invalid_member", "never")),
        (json.dumps({"params": "x" * 65_536}), (413, "too_large", "never")),
    ):
        with RawHttp(api.socket.getpeername()[1]) as http:
            response = call(http, app, family.a.id, body)
            assert problem(response) == expected, body[:80]
            if expected[0] == 422:
                assert response.json["field"] in body or response.json["field"] == "connectTimeout"
                assert response.json["detail"]
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert problem(call(api, app, family.a.id, Content_Type=kind)) == (415, "unsupported_media_type", "never")
    assert call(api, app, family.a.id, Content_Type="Application/JSON; charset=utf-8").status == 409
    path = f"/v1/devices/{family.a.id}/calls"
    assert problem(api.ask("GET", path, Authorization=app.bearer)) == (405, "method_not_allowed", "never")
    assert problem(api.ask("POST", "/v1/nothing", "{}", Authorization=app.bearer)) == (404, "no_such_path", "never")
    assert problem(call(api, app, "x" * 2_000)) == (404, "unknown_device", "never")


def test_a_large_head_and_garbage_end_in_an_answer_and_not_in_the_service(shared_cluster):
    port = shared_cluster.apis[0].port
    with RawHttp(port) as http:
        http.send(f"GET / HTTP/1.1\nHost: x\nX: {'y' * 20_000}\n\n")
        assert http.response().status == 431
    with RawHttp(port) as http:
        http.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert b"400" in http.expect_closed()[:20]
    with RawHttp(port) as http:
        assert http.ask("GET", "/v1/openapi.json").status == 200


def test_what_is_served_is_the_description_beside_the_code(api):
    served = api.ask("GET", "/v1/openapi.json")
    assert served.headers["content-type"] == "application/json"
    assert served.body == (ROOT / "services/api/openapi.json").read_text()
    assert served.json["openapi"].startswith("3.1")


def test_who_is_slow_is_cut_off_and_who_calls_too_often_is_told(new_cluster, device):
    settings = {"api.request_timeout_ms": "300", "api.idle_timeout_ms": "500"}
    settings |= {"api.calls_per_second_per_app": "1", "api.call_burst_per_app": "2", "api.max_calls_in_flight_per_app": "3"}
    cluster = new_cluster(apis=1, settings=settings)
    family = cluster.accounts.family()
    app, other = add_app(cluster.accounts), add_app(cluster.accounts)
    with RawHttp(cluster.apis[0].port) as http:
        assert [call(http, app, family.a.id).status for _ in range(3)] == [409, 409, 429]
        limited = call(http, app, family.a.id)
        assert problem(limited) == (429, "busy", "never")
        assert (limited.json["limit"], limited.headers["retry-after"]) == ("app_call_rate", "1")
        assert call(http, other, family.a.id).status == 409, "nobody else notices"
    with RawHttp(cluster.apis[0].port) as http:
        head = f"POST /v1/devices/x/calls HTTP/1.1\nHost: x\nAuthorization: {other.bearer}\nContent-Type: application/json\n"
        http.send(f"{head}Content-Length: 100\n\n")
        assert problem(http.response("POST")) == (408, "slow", "never")
    with RawHttp(cluster.apis[0].port) as http:
        http.send("POST /v1/dev")
        http.expect_closed()
    with RawHttp(cluster.apis[0].port) as http:
        assert http.ask("GET", "/v1/openapi.json").status == 200
        http.expect_closed()


def test_more_calls_at_once_than_an_application_may_have(new_cluster, device):
    cluster = new_cluster(apis=1, settings={"api.max_calls_in_flight_per_app": "1"})
    family, app = cluster.accounts.family(), add_app(cluster.accounts)
    target = device(PahoV5, family.a).connect(cluster.nodes[0]).become_callable()
    with RawHttp(cluster.apis[0].port) as first, RawHttp(cluster.apis[0].port) as second, ThreadPoolExecutor() as pool:
        called = pool.submit(call, first, app, family.a.id)
        taken = target.next_call()
        busy = call(second, app, family.a.id)
        assert (problem(busy), busy.json["limit"]) == ((429, "busy", "never"), "app_in_flight")
        taken.answer("1")
        assert called.result().body == "1"
        until("its place is free", lambda: call(second, app, family.b.id).status == 409)
    # A client that goes gives its place back.
    gone = RawHttp(cluster.apis[0].port)
    body = "{}"
    head = f"POST /v1/devices/{family.a.id}/calls HTTP/1.1\nHost: x\nAuthorization: {app.bearer}\n"
    gone.send(f"{head}Content-Type: application/json\nContent-Length: {len(body)}\n\n{body}")
    target.next_call()
    gone.socket.shutdown(socket.SHUT_RDWR)
    gone.close()
    with RawHttp(cluster.apis[0].port) as http:
        until("its place is free", lambda: call(http, app, family.b.id).status == 409)


def test_calls_in_flight_end_before_the_service_does(new_cluster, device):
    cluster = new_cluster(apis=1)
    family, app = cluster.accounts.family(), add_app(cluster.accounts)
    target = device(PahoV5, family.a).connect(cluster.nodes[0]).become_callable()
    with RawHttp(cluster.apis[0].port) as http, ThreadPoolExecutor() as pool:
        called = pool.submit(call, http, app, family.a.id)
        taken = target.next_call()
        cluster.apis[0].process.term()
        until("it accepts nobody", lambda: not listens(cluster.apis[0].port))
        taken.answer("1")
        assert called.result().body == "1"
        http.expect_closed()
    assert cluster.apis[0].process.wait() == 0


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(("face", "offline", "late"), [("/api/rpc", 504, 504), ("/api/plugins/rpc", 409, 408)])
def test_thingsboards_paths_bodies_and_statuses(face, offline, late, app, api, node, family, device):
    key = {"X-Authorization": f"ApiKey {app.key}"}

    def ask(way, body, named=family.a.id):
        return api.ask("POST", f"{face}/{way}/{named}", json.dumps(body), **key)

    assert (ask("twoway", {"method": "x"}).status, ask("twoway", {"method": "x"}).body) == (offline, "")
    assert ask("oneway", {"method": "x", "timeout": 100}).status == offline
    target = device(PahoV5, family.a).connect(node).become_callable()
    assert (ask("twoway", {"method": "x", "timeout": 100}).status) == late
    target.next_call()
    assert (ask("oneway", {"method": "x", "params": {"a": 1}}).status) == 200
    assert target.next_call().text == '{"method":"x","params":{"a": 1}}'
    with ThreadPoolExecutor() as pool:
        called = pool.submit(ask, "twoway", {"method": "getValue", "params": {}, "persistent": False, "retries": 2})
        target.next_call().answer('{"value":1}')
        answered = called.result()
    assert (answered.status, answered.body) == (200, '{"value":1}')
    for body, named, status, code in (
        ({"params": 1}, family.a.id, 400, 31),
        ({"method": "x", "persistent": True}, family.a.id, 400, 31),
        ({"method": "x", "expirationTime": 1}, family.a.id, 400, 31),
        ({"method": "x"}, "no-uuid", 400, 31),
        ({"method": "x"}, NOBODY, 404, 32),
    ):
        refused = ask("twoway", body, named)
        assert (refused.status, refused.json["status"], refused.json["errorCode"]) == (status, status, code), body
    key = {"X-Authorization": "Bearer nonsense"}
    assert (ask("twoway", {"method": "x"}).status, ask("twoway", {"method": "x"}).json["errorCode"]) == (401, 10)


# What a program of a user's does, by ThingsBoard's own client and nothing else.
REST_CLIENT = """
import json, sys
from tb_rest_client.rest import ApiException
from tb_rest_client.rest_client import RestClient
url, key, device = sys.argv[1:]
client = RestClient(url)
client.api_key_login(key)
body = {"method": "getValue", "params": {"pin": 7}, "timeout": 2000}
for ask in (client.handle_two_way_device_rpc_request_v1, client.handle_two_way_device_rpc_request):
    print(json.dumps(ask(device, body)))
print(json.dumps(client.handle_one_way_device_rpc_request_v1(device, body)))
try:
    client.handle_two_way_device_rpc_request_v1("aa435e80-9fce-11e6-8080-000000000000", body)
except ApiException as error:
    print(json.dumps(error.status))
"""


def test_thingsboards_own_rest_client_works_unchanged(app, shared_cluster, node, family, device):
    target = device(PahoV5, family.a).connect(node).become_callable(lambda call: call.answer(json.dumps({"read": call.text})))
    url = f"http://127.0.0.1:{shared_cluster.apis[0].port}"
    client = [tool("python3"), "-c", REST_CLIENT, url, app.key, family.a.id]
    lines = run(*client, env={"PYTHONPATH": str(ROOT / ".tools" / "thingsboard-rest")}).ok().out.splitlines()
    read = {"read": '{"method":"getValue","params":{"pin": 7}}'}
    assert [json.loads(line) for line in lines] == [read, read, None, 404]
    target.close()


def test_the_command_shows_applications_and_keeps_keys_to_itself(shared_cluster, app):
    cli = shared_cluster.accounts.cli
    listed = cli("app", "list").ok().out
    assert app.name in listed and app.key_id in listed and app.key not in listed
    shown = next(it for it in json.loads(cli("app", "list", "--json").ok().out) if it["id"] == app.id)
    assert (shown["role"], [key["id"] for key in shown["keys"]], "key" in shown) == ("caller", [app.key_id], False)
    taken = cli("app", "add", app.name, "--tenant", "Test Tenant")
    assert taken.code == 1 and "this name is taken" in taken.err
    assert "app.add" in cli("audit", "query", "--json").ok().out


def test_a_whole_system_lets_an_application_in(demo, device):
    made = run(built("switchboard"), "app", "add", "backend", "--nats", demo.nats_url, "--json").ok()
    app = App(json.loads(made.out)["id"], "backend", json.loads(made.out)["key"])
    TOKENS.add(app.key)
    assert f"http://127.0.0.1:{demo.api_port}/v1/openapi.json" in demo.process.out
    with RawHttp(demo.api_port) as http:
        until("it is known", lambda: call(http, app, "Test%20Device%20A1").status == 409)


def get(http: RawHttp, app: App, path: str):
    return http.ask("GET", path, Authorization=app.bearer)


def test_devices_are_shown_and_whether_they_are_there(shared_cluster, api, node, family, device):
    accounts, other = shared_cluster.accounts, shared_cluster.accounts.family()
    app = add_app(accounts, "--customer", family.customer)
    accounts.cli("device", "label", "set", family.b.id, "zone=north 1").ok()
    target = device(PahoV5, family.a).connect(node).become_callable()
    shown = get(api, app, f"/v1/devices/{quote(family.a.name)}").json
    customer, since_ms = shown.pop("customer"), shown.pop("sinceMs")
    assert 0 <= time.time() * 1_000 - since_ms < 60_000
    expected = {"id": family.a.id, "name": family.a.name, "type": "default", "labels": {}}
    assert shown == expected | {"online": True, "node": node.node_id, "protocol": "mqtt"}
    for named in (NOBODY, other.a.id, quote(other.a.name)):
        assert problem(get(api, app, f"/v1/devices/{named}")) == (404, "unknown_device", "never")

    def names(query: str, path: str = "/v1/devices") -> list[str]:
        return [it["name"] for it in get(api, app, f"{path}{query}").json["devices"]]

    everybody = [family.a.name, family.b.name, family.c.name]
    assert names("") == everybody
    assert names(f"?customer={customer}") == names("", "/v1/presence") == everybody
    assert names("?online=true", "/v1/presence") == names("?online=true") == [family.a.name]
    assert names("?online=false&type=default") == [family.b.name, family.c.name]
    until("the label is known", lambda: names("?label=zone%3Dnorth+1") == [family.b.name])
    assert names("?type=other") == names(f"?customer={NOBODY}") == []
    assert names(f"?name={quote(family.c.name)}") == [family.c.name]
    assert names(f"?name={quote('Customer')}&limit=2") == everybody[:2]
    first = get(api, app, "/v1/devices?limit=2").json
    rest = get(api, app, f"/v1/devices?limit=2&after={quote(first['next'])}").json
    assert [it["name"] for page in (first, rest) for it in page["devices"]] == everybody
    assert "next" not in rest
    refused = get(api, app, "/v1/devices?limit=501")
    assert (problem(refused), refused.json["field"]) == ((422, "invalid_parameter", "never"), "limit")
    assert problem(api.ask("GET", "/v1/presence")) == (401, "unauthenticated", "never")

    listed = json.loads(accounts.cli("device", "list", "--online", "--customer", family.customer, "--json").ok().out)
    place = {"online": True, "node": node.node_id, "protocol": "mqtt", "sinceMs": since_ms}
    assert [{name: it[name] for name in place} for it in listed] == [place]
    target.close()
    until("it has gone", lambda: names("?online=true") == [])

    def last_seen(path: str) -> dict | None:
        found = get(api, app, path).json
        return found.get("devices", [found])[0].get("lastSeen")

    until("it is known how it was last there", lambda: last_seen(f"/v1/devices/{family.a.id}") is not None)
    last = last_seen(f"/v1/presence?name={quote(family.a.name)}")
    assert last["atMs"] >= since_ms
    assert last == {"atMs": last["atMs"], "node": node.node_id, "protocol": "mqtt", "sinceMs": since_ms, "reason": "by_device"}
    assert last_seen(f"/v1/devices/{family.b.id}") is None
    assert accounts.cli("device", "list", "--online", "--customer", family.customer, "--json").ok().out.strip() == "[]"
