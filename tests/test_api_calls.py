"""What becomes of applications' calls? Groups of them, answers after the end, and calls made twice under one key."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.apps import App, add_app, call
from harness.devices import PROTOCOLS, PahoV5
from harness.raw_http import RawHttp, Response
from harness.waiting import until

NOBODY = "aa435e80-9fce-11e6-8080-000000000000"


def look(http: RawHttp, app: App, call_id: str) -> Response:
    return http.ask("GET", f"/v1/calls/{call_id}", Authorization=app.bearer)


def group(http: RawHttp, app: App, targets: dict, accept: str = "*/*", **members: object) -> Response:
    headers = {"Authorization": app.bearer, "Content_Type": "application/json", "Accept": accept}
    return http.ask("POST", "/v1/calls", json.dumps({"targets": targets} | members), **headers)


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_an_answer_after_the_time_is_read_from_any_copy_by_who_called(kind, shared_cluster, app, api, node, family, device):
    target = device(kind, family.a).connect(node).become_callable()
    timed_out = call(api, app, family.a.id, {"timeout": 300})
    assert (timed_out.status, timed_out.json["outcome"]) == (504, "timed_out")
    call_id = timed_out.headers["switchboard-call"]
    assert look(api, app, call_id).json == {"callId": call_id, "outcome": "timed_out", "seen": "maybe"}
    target.next_call().answer('{"late": [1.50,\n 2]}')
    until("the answer is there", lambda: look(api, app, call_id).json["outcome"] == "answered")
    with RawHttp(shared_cluster.apis[1].port) as other:
        for http in (api, other):
            shown = look(http, app, call_id)
            assert shown.body.endswith('"body":{"late": [1.50,  2]}}')
            expected = {"callId": call_id, "outcome": "answered", "seen": "yes", "late": True}
            assert shown.json == expected | {"body": {"late": [1.5, 2]}}
            assert look(http, add_app(shared_cluster.accounts), call_id).status == 404, "another application's"


def test_a_call_is_followed_from_its_begin_and_after_its_client_has_gone(shared_cluster, app, api, node, family, device):
    target = device(PahoV5, family.a).connect(node).become_callable()
    answered = call(api, app, family.b.id)
    assert look(api, app, answered.headers["switchboard-call"]).status == 404, "its end was told"
    prefix, serial = answered.headers["switchboard-call"].split("-")
    with RawHttp(shared_cluster.apis[0].port) as gone:
        body = "{}"
        head = f"POST /v1/devices/{family.a.id}/calls HTTP/1.1\nHost: x\nAuthorization: {app.bearer}\n"
        gone.send(f"{head}Content-Type: application/json\nContent-Length: {len(body)}\n\n{body}")
        taken = target.next_call()
    call_id = f"{prefix}-{int(serial, 16) + 1:x}"
    running = look(api, app, call_id)
    assert (running.status, running.json) == (202, {"callId": call_id, "running": True})
    taken.answer('"x"')
    until("it has ended", lambda: look(api, app, call_id).status == 200)
    assert look(api, app, call_id).json == {"callId": call_id, "outcome": "answered", "seen": "yes", "body": "x"}
    for nothing in (f"{prefix}-ffffffff", "0123456789abcdef-1", "nothing"):
        unknown = look(api, app, nothing)
        assert (unknown.status, unknown.json["type"]) == (404, "urn:switchboard:problem:unknown_call"), nothing


def test_a_group_has_a_verdict_for_each_target(shared_cluster, app, api, node, family, device):
    accounts = shared_cluster.accounts
    for it, body in ((family.a, '{"a":\n1}'), (family.b, "[2]")):
        device(PahoV5, it).connect(node).become_callable(lambda call, body=body: call.answer(body))
    targets = {"devices": [family.a.id, family.b.name, family.c.id, NOBODY]}
    told = group(api, app, targets, method="blink", timeout=5_000).json
    verdicts = {it.pop("device"): it for it in told.pop("results")}
    ids = [it.pop("callId") for it in verdicts.values()]
    assert len(set(ids)) == 4
    assert verdicts == {
        family.a.id: {"outcome": "answered", "seen": "yes", "body": {"a": 1}},
        family.b.name: {"outcome": "answered", "seen": "yes", "body": [2]},
        family.c.id: {"outcome": "offline", "seen": "never"},
        NOBODY: {"outcome": "unknown_device", "seen": "never"},
    }
    assert told == {"counts": {"answered": 2, "offline": 1, "unknown_device": 1}, "running": 0, "notCalled": 0}

    # All of a customer, or with a label; streamed, a line or an event for each.
    customer = next(it for it in json.loads(accounts.cli("device", "list", "--json").ok().out) if it["id"] == family.a.id)["customer"]
    everybody = {family.a.id, family.b.id, family.c.id}
    lines = group(api, app, {"customer": customer}, "application/x-ndjson")
    assert lines.headers["content-type"] == "application/x-ndjson"
    *verdicts, summary = [json.loads(line) for line in lines.body.splitlines()]
    assert {it["device"] for it in verdicts} == everybody
    assert summary["counts"] == {"answered": 2, "offline": 1}
    accounts.cli("device", "label", "set", family.b.id, f"ring={family.customer}").ok()
    events = until("the label counts", lambda: told_events(group(api, app, {"labels": {"ring": family.customer}}, "text/event-stream")))
    assert [name for name, _ in events] == ["verdict", "summary"]
    assert (events[0][1]["device"], events[0][1]["body"]) == (family.b.id, [2])

    too_many = group(api, app, {"customer": customer}, max=2)
    assert (too_many.status, too_many.json["type"]) == (422, "urn:switchboard:problem:too_many_targets")
    for wrong, field in (({}, "targets"), ({"devices": []}, "targets.devices"), ({"customer": "x"}, "targets.customer")):
        refused = group(api, app, wrong)
        assert (refused.status, refused.json["field"]) == (422, field)


def told_events(response: Response) -> list[tuple[str, dict]]:
    """The events of a stream; none where it has but the summary."""
    assert response.headers["content-type"] == "text/event-stream"
    events = [it.split("\n") for it in response.body.split("\n\n") if it]
    told = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in events]
    return told if len(told) > 1 else []


def test_a_group_ends_with_its_quorum_and_begins_nothing_for_who_has_gone(shared_cluster, app, api, node, family, device):
    silent = device(PahoV5, family.a).connect(node).become_callable()
    device(PahoV5, family.b).connect(node).become_callable(lambda call: call.answer("1"))
    targets = {"devices": [family.a.id, family.b.id, family.c.id]}
    told = group(api, app, targets, parallel=2, quorum=1).json
    (answered, running) = told["results"]
    assert (answered["device"], running["device"], running["running"]) == (family.b.id, family.a.id, True)
    assert told | {"results": []} == {"results": [], "counts": {"answered": 1}, "running": 1, "notCalled": 1}
    silent.next_call().answer("2")
    until("what was under way has ended", lambda: look(api, app, running["callId"]).status == 200)
    assert look(api, app, running["callId"]).json["body"] == 2

    # One at a time, to a client that goes while the first is under way: the second is never called.
    second = device(PahoV5, family.c).connect(node).become_callable()
    with RawHttp(shared_cluster.apis[0].port) as gone:
        body = json.dumps({"targets": {"devices": [family.a.id, family.c.id]}, "parallel": 1})
        head = f"POST /v1/calls HTTP/1.1\nHost: x\nAuthorization: {app.bearer}\nAccept: application/x-ndjson\n"
        gone.send(f"{head}Content-Type: application/json\nContent-Length: {len(body)}\n\n{body}")
        first = silent.next_call()
        gone.reset()
    first.answer("3")
    # Behind whatever the group would have asked.
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(call, api, app, family.c.id, {"method": "after"})
        taken = second.next_call()
        assert json.loads(taken.text)["method"] == "after"
        taken.answer("1")
        assert asked.result().status == 200


def keyed(http: RawHttp, app: App, device: str, key: str, body: object = None) -> Response:
    return call(http, app, device, body, Idempotency_Key=key)


def name_of(response: Response) -> str:
    return response.json["type"].removeprefix("urn:switchboard:problem:")


def test_a_key_has_one_call_and_its_answer_is_told_again_by_any_copy(shared_cluster, app, api, node, family, device):
    calls = []

    def answer(taken):
        calls.append(taken.text)
        taken.answer(f'{{"n":  {len(calls)}}}')

    device(PahoV5, family.a).connect(node).become_callable(answer)
    first = keyed(api, app, family.a.id, "one", {"params": [1]})
    assert (first.status, first.body, "idempotent-replayed" in first.headers) == (200, '{"n":  1}', False)
    with RawHttp(shared_cluster.apis[1].port) as other:
        for http in (api, other):
            again = keyed(http, app, family.a.id, "one", '{ "params":[1] }')
            assert (again.status, again.body) == (200, first.body)
            labels = ("switchboard-call", "switchboard-outcome", "switchboard-seen")
            assert [again.headers[it] for it in labels] == [first.headers[it] for it in labels]
            assert again.headers["idempotent-replayed"] == "true"
        # Another body, another target; another application has keys of its own.
        for conflict in (keyed(other, app, family.a.id, "one", {"params": [2]}), keyed(other, app, family.b.id, "one", {"params": [1]})):
            assert (conflict.status, name_of(conflict), conflict.json["seen"]) == (409, "idempotency_conflict", "never")
    assert keyed(api, add_app(shared_cluster.accounts), family.a.id, "one", {"params": [1]}).body == '{"n":  2}'
    assert keyed(api, app, family.a.id, "two", {"params": [1]}).body == '{"n":  3}'
    assert len(calls) == 3
    for key in ("", "x" * 65, "a b"):
        refused = keyed(api, app, family.a.id, key)
        assert (refused.status, name_of(refused), refused.json["field"]) == (422, "invalid_header", "Idempotency-Key")
    assert group(api, app, {"devices": [family.a.id]}).status == 200
    headers = {"Authorization": app.bearer, "Content_Type": "application/json", "Idempotency_Key": "x"}
    assert api.ask("POST", "/v1/calls", json.dumps({"targets": {"devices": [family.a.id]}}), **headers).status == 422


def test_a_key_is_free_again_after_what_was_never_seen_and_holds_what_may_have_been(shared_cluster, app, api, node, family, device):
    assert keyed(api, app, family.a.id, "free").json["outcome"] == "offline"
    target = device(PahoV5, family.a).connect(node).become_callable()
    with ThreadPoolExecutor() as pool, RawHttp(shared_cluster.apis[1].port) as other:
        called = pool.submit(keyed, api, app, family.a.id, "free")
        taken = target.next_call()
        busy = keyed(other, app, family.a.id, "free")
        assert (busy.status, name_of(busy), busy.json["seen"], busy.headers["retry-after"]) == (409, "in_progress", "maybe", "1")
        taken.answer("1")
        answered = called.result()
        assert answered.headers["switchboard-call"] == busy.json["callId"]
        assert keyed(other, app, family.a.id, "free").body == answered.body == "1"
        timed_out = keyed(api, app, family.a.id, "late", {"timeout": 300})
        assert timed_out.json["outcome"] == "timed_out"
        target.next_call().answer('"late"')
        until("it is there", lambda: look(api, app, timed_out.json["callId"]).json["outcome"] == "answered")
        again = keyed(other, app, family.a.id, "late", {"timeout": 300})
        assert (again.status, again.json) == (504, timed_out.json), "the same answer"


def test_a_copy_that_dies_under_a_call_leaves_no_second_one(new_cluster, device):
    cluster = new_cluster(apis=2)
    family, app = cluster.accounts.family(), add_app(cluster.accounts)
    target = device(PahoV5, family.a).connect(cluster.nodes[0]).become_callable()
    with ThreadPoolExecutor() as pool, RawHttp(cluster.apis[0].port) as dies, RawHttp(cluster.apis[1].port) as other:
        called = pool.submit(keyed, dies, app, family.a.id, "one")
        target.next_call()
        cluster.apis[0].process.kill()
        assert called.exception() is not None
        until("it is known to be gone", lambda: keyed(other, app, family.a.id, "one").status == 503)
        again = keyed(other, app, family.a.id, "one")
        assert (again.status, again.json["outcome"], again.json["seen"]) == (503, "unavailable", "maybe")
        # Behind whatever would have been a second call.
        asked = pool.submit(call, other, app, family.a.id, {"method": "after"})
        taken = target.next_call()
        assert json.loads(taken.text)["method"] == "after"
        taken.answer("1")
        assert asked.result().body == "1"
        # Nor is one made without a record.
        cluster.nats.stop()
        refused = keyed(other, app, family.a.id, "two")
        assert (refused.status, refused.json["seen"]) == (503, "never")
