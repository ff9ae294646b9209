"""What does a device read over HTTP? Statuses, polls and their order."""

import json
import random
import socket
import subprocess
import time
import urllib.parse
from collections import Counter
from contextlib import contextmanager

import pytest
from harness import said
from harness.asked import TIME, send_msg
from harness.devices import CoapDevice, HttpDevice, PahoV5, PahoV311
from harness.devices.device import answering, echo
from harness.nats_listener import NatsListener
from harness.processes import run
from harness.programs import built
from harness.raw_http import RawHttp, rpc
from harness.waiting import until


def poll(node, identity, timeout_ms=20_000):
    """A poll that is on its way, on a connection of its own."""
    connection = RawHttp(node.http_port)
    connection.send(f"GET {rpc(identity)}?timeout={timeout_ms} HTTP/1.1\nHost: test\n\n")
    return connection


def become_callable(connection, identity):
    """The end of a poll says so."""
    assert connection.ask("GET", rpc(identity, "?timeout=1")).status == 408


@contextmanager
def waiting_polls(node, more, beside=0):
    """Waits until so many more polls wait than those that the test has beside them."""
    polls = lambda: node.admin.value("switchboard_http_polls")  # noqa: E731
    # One whose client closed its socket is waited for a little longer.
    until("other tests' polls are over", lambda: polls() == beside)
    yield
    until(f"{more} polls wait", lambda: polls() == beside + more)


def test_statuses(http, family):
    nobody = "/api/v1/nobody"
    table = [
        (("POST", rpc(family.a), TIME), 200),
        (("POST", rpc(family.a), send_msg(family.b)), 200),
        (("POST", rpc(family.a), send_msg(family.b, timeout=0)), 200),
        (("POST", rpc(family.a), '{"method":"getFoo"}'), 200),
        (("POST", rpc(family.a), ""), 400),
        (("POST", rpc(family.a), "[]"), 400),
        (("POST", rpc(family.a), '{"method":"sendMsg","params":{"deviceId":"A2"}}'), 400),
        (("POST", f"{nobody}/rpc", TIME), 401),
        (("GET", f"{nobody}/rpc"), 401),
        (("POST", f"{nobody}/rpc/1", "1"), 401),
        (("POST", f"{nobody}/telemetry", "{}"), 401),
        (("POST", "/api/v1//rpc", TIME), 401),
        (("POST", "/api/v1/%ff/rpc", TIME), 400),
        (("POST", "/api/v1/a%00b/rpc", TIME), 401),
        (("GET", rpc(family.a, "?timeout=1")), 408),
        (("GET", rpc(family.a, "?timeout=-1")), 400),
        (("GET", rpc(family.a, "?timeout=300001")), 400),
        (("GET", rpc(family.a, "?timeout=" + "9" * 400)), 400),
        (("GET", rpc(family.a, "?timeout=soon")), 400),
        (("POST", rpc(family.a, "/1"), "1"), 404),
        (("POST", rpc(family.a, "/0"), "1"), 404),
        (("POST", rpc(family.a, "/99999999999"), "1"), 404),
        (("POST", rpc(family.a, "/first"), "1"), 404),
        (("POST", f"/api/v1/{family.a.token}/telemetry", '{"t":1}'), 200),
        (("POST", f"/api/v1/{family.a.token}/attributes", "{"), 400),
        (("GET", f"/api/v1/{family.a.token}/attributes?clientKeys=a,b&sharedKeys=c"), 200),
        (("GET", f"{nobody}/attributes"), 401),
        (("GET", f"/api/v1/{family.a.token}/attributes/updates?timeout=1"), 408),
        (("GET", f"/api/v1/{family.a.token}/attributes/updates?timeout=soon"), 400),
        (("GET", f"{nobody}/attributes/updates"), 401),
        (("PUT", rpc(family.a), TIME), 405),
        (("GET", "/"), 404),
        (("GET", f"/api/v1/{family.a.token}/firmware"), 404),
    ]
    # All on one connection, which is kept.
    for request, status in table:
        response = http.ask(*request)
        assert response.status == status, (request, response)
        assert status in (200, 405, 408) or response.error, request
        if response.body:
            assert response.headers["content-type"] == "application/json"


def test_with_curl(node, family):
    url = f"http://127.0.0.1:{node.http_port}/api/v1/{family.a.token}"

    def curl(*arguments):
        command = ["curl", "--silent", "--show-error", "--max-time", "20", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    target = f"http://127.0.0.1:{node.http_port}/api/v1/{family.b.token}"
    assert json.loads(curl("--data", TIME, f"{url}/rpc"))["time"] > 1e12
    assert curl("--data", send_msg(family.b), f"{url}/rpc") == said.OFFLINE
    assert curl("--output", "-", "--write-out", "%{http_code}", f"{target}/rpc?timeout=1") == "408"
    caller = subprocess.Popen(["curl", "--silent", "--data", send_msg(family.b, '{"x":1}'), f"{url}/rpc"], stdout=subprocess.PIPE)
    call = json.loads(curl(f"{target}/rpc"))
    assert call == {"id": call["id"], "method": "onMsg", "params": {"x": 1}}
    assert curl("--data", '{"status":"ok"}', "--write-out", "%{http_code}", f"{target}/rpc/{call['id']}") == "200"
    assert caller.communicate(timeout=20)[0] == b'{"status":"ok"}'


def test_one_poll_takes_one_call_in_order(node, http, family, device):
    caller = device(PahoV5, family.a).connect(node)
    become_callable(http, family.b)
    polls = []
    for number in range(3):
        with waiting_polls(node, 1, beside=number):
            polls.append(poll(node, family.b))
    answers = []
    for number, connection in enumerate(polls):
        answers.append(caller.send_msg(family.b, str(number)))
        call = connection.response().json
        assert call["params"] == number
        assert http.ask("POST", rpc(family.b, f"/{call['id']}"), f'"{number}"').status == 200
    assert [answer.text() for answer in answers] == ['"0"', '"1"', '"2"']
    for connection in polls:
        connection.close()


def test_a_call_between_two_polls_waits(node, http, family, device):
    caller = device(PahoV5, family.a).connect(node)
    become_callable(http, family.b)
    answers = [caller.send_msg(family.b, str(number)) for number in range(3)]
    heard = set()
    for _ in range(3):
        call = http.ask("GET", rpc(family.b)).json
        heard.add(call["params"])
        http.ask("POST", rpc(family.b, f"/{call['id']}"), str(call["params"]))
    assert heard == {0, 1, 2}
    assert [answer.text() for answer in answers] == ["0", "1", "2"]


def test_a_call_that_no_poll_takes_never_reached_the_device(node, http, family, device):
    caller = device(PahoV5, family.a).connect(node)
    become_callable(http, family.b)
    started = time.monotonic()
    assert caller.send_msg(family.b, "1", timeout=60_000).text() == said.OFFLINE
    # The settings of these tests give a second of grace.
    assert 0.5 < time.monotonic() - started < 10


def test_a_device_at_work_may_answer_after_its_grace(node, http, family, device):
    caller = device(PahoV5, family.a).connect(node)
    become_callable(http, family.b)
    answer = caller.send_msg(family.b, "1", timeout=60_000)
    call = http.ask("GET", rpc(family.b)).json
    assert caller.send_msg(family.b, "2", timeout=60_000).text() == said.OFFLINE
    assert http.ask("POST", rpc(family.b, f"/{call['id']}"), '"late"').status == 200
    assert answer.text() == '"late"'


def test_an_answer_must_be_json_and_comes_once(node, http, family, device):
    caller = device(PahoV5, family.a).connect(node)
    become_callable(http, family.b)
    answer = caller.send_msg(family.b, "1")
    path = rpc(family.b, f"/{http.ask('GET', rpc(family.b)).json['id']}")
    assert http.ask("POST", path, "ok").status == 400
    assert http.ask("POST", path, "").status == 400
    assert not answer.is_there()
    # Another device's path does not answer this one's call.
    assert http.ask("POST", path.replace(family.b.token, family.c.token), "1").status == 404
    assert http.ask("POST", path, '"ok"').status == 200
    assert http.ask("POST", path, '"ok"').status == 404
    assert answer.text() == '"ok"'


def test_a_one_way_call_is_delivered_by_the_poll_that_takes_it(node, http, family, device):
    caller = device(PahoV5, family.a).connect(node)
    become_callable(http, family.b)
    answer = caller.send_msg(family.b, "1", oneway=True)
    call = http.ask("GET", rpc(family.b)).json
    assert answer.text() == "null"
    assert http.ask("POST", rpc(family.b, f"/{call['id']}"), "1").status == 404


def test_a_poll_whose_client_sends_no_more_hears_its_call(node, http, family, device):
    """As `nc -N` has it: the end of its input is not the client's end."""
    caller = device(PahoV5, family.a).connect(node)
    become_callable(http, family.b)
    for number in range(20):
        with waiting_polls(node, 1):
            half = poll(node, family.b)
            half.socket.shutdown(socket.SHUT_WR)
        answer = caller.send_msg(family.b, str(number))
        call = half.response().json
        assert call["params"] == number
        assert half.expect_closed() == b""
        assert http.ask("POST", rpc(family.b, f"/{call['id']}"), str(number)).status == 200
        assert answer.text() == str(number)


def test_a_poll_whose_client_sends_no_more_ends_in_time(node, family):
    with poll(node, family.b, 1_000) as half:
        half.socket.shutdown(socket.SHUT_WR)
        assert half.response().status == 408


def test_polls_whose_clients_closed_give_way_and_swallow_no_call(node, http, family, device):
    """Of a client that closed its socket TCP tells the same as of one that reads on, until it is sent something."""
    caller = device(PahoV5, family.a).connect(node)
    become_callable(http, family.b)
    with waiting_polls(node, 16):
        for _ in range(16):
            poll(node, family.b).close()
    # They neither keep a live one out, nor take its call.
    with waiting_polls(node, 0, beside=16):
        staying = poll(node, family.b)
    answer = caller.send_msg(family.b, "1")
    call = staying.response().json
    http.ask("POST", rpc(family.b, f"/{call['id']}"), '"heard"')
    assert answer.text() == '"heard"'
    # With nobody else there, the next that comes gets the call, whatever was tried before.
    answer = caller.send_msg(family.b, "2")
    until("all are known to have gone", lambda: node.admin.value("switchboard_http_polls") == 0)
    call = http.ask("GET", rpc(family.b)).json
    http.ask("POST", rpc(family.b, f"/{call['id']}"), '"heard"')
    assert answer.text() == '"heard"'
    staying.close()


def test_a_poll_whose_client_has_gone_swallows_no_call(node, http, family, device):
    caller = device(PahoV5, family.a).connect(node)
    become_callable(http, family.b)
    with waiting_polls(node, 1):
        poll(node, family.b).reset()
        staying = poll(node, family.b)
    answer = caller.send_msg(family.b, "1")
    call = staying.response().json
    http.ask("POST", rpc(family.b, f"/{call['id']}"), '"heard"')
    assert answer.text() == '"heard"'
    staying.close()


def test_a_poll_whose_end_cannot_be_read_swallows_no_call(node, http, family, device):
    """Behind requests that wait to be read, the end of the connection is not seen by reading."""
    caller = device(PahoV5, family.a).connect(node)
    become_callable(http, family.b)
    for number in range(20):
        with waiting_polls(node, 1):
            going = poll(node, family.b)
            going.send(f"GET {rpc(family.b)} HTTP/1.1\nHost: test\n\n" * 2)
        going.close()
        answer = caller.send_msg(family.b, str(number))
        response = http.ask("GET", rpc(family.b))
        assert response.status == 200, response
        call = response.json
        assert call["params"] == number
        assert http.ask("POST", rpc(family.b, f"/{call['id']}"), str(number)).status == 200
        assert answer.text() == str(number)


def test_polls_that_go_at_the_moment_of_a_call_swallow_none(node, http, family, device):
    """The client goes, in one way or another, while the call is on its way: it is heard once."""
    caller = device(PahoV5, family.a).connect(node)
    become_callable(http, family.b)
    rng, ends = random.Random(7), Counter()
    for number in range(150):
        going = poll(node, family.b)
        end = rng.choice(["half-close", "close", "reset"])
        if end == "half-close":
            answer = caller.send_msg(family.b, str(number))
            # Seen to send no more before, while and after the call comes.
            time.sleep(rng.random() * 0.004)
            going.socket.shutdown(socket.SHUT_WR)
            heard = going.expect_closed().decode()
        else:
            time.sleep(rng.random() * 0.002)
            going.reset() if end == "reset" else going.close()
            answer = caller.send_msg(family.b, str(number))
            heard = http.ask("GET", rpc(family.b, "?timeout=3000")).body
        assert heard, f"call {number} was swallowed: {end}"
        ends[end] += 1
        call = json.loads(heard[heard.index('{"id"') :])
        assert call["params"] == number
        assert http.ask("POST", rpc(family.b, f"/{call['id']}"), str(number)).status == 200
        assert answer.text() == str(number)
    print(ends)


def test_more_polls_than_may_wait(node, http, family):
    become_callable(http, family.b)
    with waiting_polls(node, 16):
        polls = [poll(node, family.b) for _ in range(16)]
    response = http.ask("GET", rpc(family.b))
    assert (response.status, response.headers["retry-after"], response.body) == (429, "1", said.BUSY)
    for connection in polls:
        connection.close()
    until("they are gone", lambda: http.ask("GET", rpc(family.b, "?timeout=1")).status == 408)


@pytest.mark.parametrize("where", [0, 1], ids=["same-node", "other-node"])
def test_a_newer_session_takes_over(shared_cluster, node, http, family, device, where):
    other = shared_cluster.nodes[where]
    caller = device(PahoV5, family.a).connect(shared_cluster.nodes[1])
    become_callable(http, family.b)
    taken = caller.send_msg(family.b, "1", timeout=60_000)
    call = http.ask("GET", rpc(family.b)).json
    with waiting_polls(node, 1):
        waiting = poll(node, family.b)
    newer = device(PahoV5, family.b).connect(other).become_callable(answering('"mqtt"'))
    assert waiting.response().status == 409
    assert taken.text() == said.LOST, "a call that the older session has taken ends with it"
    assert http.ask("POST", rpc(family.b, f"/{call['id']}"), "1").status == 404
    assert caller.send_msg(family.b, "2").text() == '"mqtt"'
    # And back: a poll is newer than that connection.
    become_callable(http, family.b)
    assert newer.ended.wait(20)
    again = caller.send_msg(family.b, "3")
    call = http.ask("GET", rpc(family.b)).json
    http.ask("POST", rpc(family.b, f"/{call['id']}"), '"http"')
    assert again.text() == '"http"'
    waiting.close()


def test_a_device_may_answer_at_another_node(shared_cluster, family, device):
    """The number says which node gave the call; what that says of the answer is what the device reads."""
    here, there = shared_cluster.nodes
    caller = device(PahoV5, family.a).connect(here)
    with RawHttp(here.http_port) as poller, RawHttp(there.http_port) as other:
        become_callable(poller, family.b)
        for body in ('"there"', '{"large":"' + "x" * 60_000 + '"}'):
            answer = caller.send_msg(family.b, "1")
            call = poller.ask("GET", rpc(family.b)).json
            path = rpc(family.b, f"/{call['id']}")
            assert other.ask("POST", path, "ok").status == 400, "it is not JSON, and the call stays open"
            assert other.ask("POST", path, body).status == 200
            assert answer.text() == body
            assert other.ask("POST", path, body).status == 404
            assert poller.ask("POST", path, body).status == 404
        oneway = caller.send_msg(family.b, "1", oneway=True)
        call = poller.ask("GET", rpc(family.b)).json
        assert oneway.text() == "null"
        assert other.ask("POST", rpc(family.b, f"/{call['id']}"), "1").status == 404
        # Another device's token does not answer this one's call.
        answer = caller.send_msg(family.b, "1")
        path = rpc(family.b, f"/{poller.ask('GET', rpc(family.b)).json['id']}")
        assert other.ask("POST", path.replace(family.b.token, family.c.token), '"c"').status == 404
        assert other.ask("POST", path, '"b"').status == 200
        assert answer.text() == '"b"'


def test_a_number_that_no_node_gave(shared_cluster, http, family):
    started = time.monotonic()
    for number in range(5, 2**31, 2**28):
        assert http.ask("POST", rpc(family.b, f"/{number}"), "1").status == 404
    assert time.monotonic() - started < 1, "NATS says at once that nobody is there"


def test_an_answer_for_another_node_while_nats_is_away(new_cluster, device):
    cluster = new_cluster(nodes=2)
    family = cluster.accounts.family()
    here, there = cluster.nodes
    with RawHttp(here.http_port) as poller, RawHttp(there.http_port) as other:
        become_callable(poller, family.b)
        assert other.ask("POST", rpc(family.b), TIME).status == 200
        device(PahoV5, family.a).connect(there).send_msg(family.b, "1", timeout=60_000)
        call = poller.ask("GET", rpc(family.b)).json
        cluster.nats.process.kill()
        until("the node has seen it", lambda: other.ask("POST", rpc(family.b, f"/{call['id']}"), "1").status == 503)
        assert poller.ask("POST", rpc(family.b, f"/{call['id']}"), "1").status == 200


def test_what_stands_beside_a_body(shared_cluster, http, family, device):
    """Names for machines, and who calls: stamped at the caller's node, whatever a client says of itself."""
    caller = RawHttp(shared_cluster.nodes[1].http_port)
    become_callable(http, family.b)
    body = send_msg(family.b, timeout=10_000)
    caller.send(
        f"POST {rpc(family.a)} HTTP/1.1\nHost: t\nSwitchboard-Caller: me\nContent-Length: {len(body)}\n\n{body}"
    )
    call = http.ask("GET", rpc(family.b))
    assert set(call.json) == {"id", "method", "params"}, "the body names nobody unless it is set so"
    assert call.headers["switchboard-caller"] == family.a.id
    assert urllib.parse.unquote(call.headers["switchboard-caller-name"]) == family.a.name
    assert 5_000 < int(call.headers["switchboard-expires-ms"]) <= 10_000
    http.ask("POST", rpc(family.b, f"/{call.json['id']}"), '{"error":"of the device itself"}')
    answer = caller.response()
    assert answer.headers["switchboard-outcome"] == "answered"
    assert answer.headers["switchboard-call"] == call.headers["switchboard-call"]
    table = [
        (send_msg(family.c), 200, "offline"),
        (send_msg(family.c, timeout=0), 200, "malformed"),
        ("[", 400, "malformed"),
        (TIME, 200, "answered"),
        ('{"method":"sendMsg","params":{"deviceId":"00000000-0000-0000-0000-000000000000"}}', 200, "unknown_device"),
    ]
    for request, status, outcome in table:
        response = caller.ask("POST", rpc(family.a), request)
        assert (response.status, response.headers["switchboard-outcome"]) == (status, outcome), request
        assert ("switchboard-call" in response.headers) == (outcome in ("offline", "unknown_device"))
    caller.close()


def test_the_message_names_the_caller_where_it_is_set_so(new_cluster, device):
    cluster = new_cluster(settings={"device_api.tell_caller_in_body": "true"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    caller = device(PahoV5, family.a).connect(node)
    for kind in (PahoV311, PahoV5, HttpDevice, CoapDevice):
        target = device(kind, family.b).connect(node).become_callable()
        answer = caller.send_msg(family.b, '{"a" : 1}', timeout=10_000)
        call = target.next_call()
        message = json.loads(call.text)
        assert 5_000 < message.pop("expiresMs") <= 10_000
        caller_is = {"id": family.a.id, "name": family.a.name}
        assert message == {"method": "onMsg", "params": {"a": 1}, "caller": caller_is}, kind.protocol
        call.answer("1")
        assert answer.text() == "1"
        target.close()


def test_polls_at_one_node_after_the_other(shared_cluster, family, device):
    caller = device(PahoV5, family.a).connect(shared_cluster.nodes[0])
    with RawHttp(shared_cluster.nodes[0].http_port) as one, RawHttp(shared_cluster.nodes[1].http_port) as two:
        for number, http in enumerate([one, two] * 5):
            # 409 from a node that hears only now that the other one took over: the device asks again.
            until("it polls here", lambda http=http: http.ask("GET", rpc(family.b, "?timeout=1")).status == 408)
            answer = caller.send_msg(family.b, str(number))
            call = http.ask("GET", rpc(family.b)).json
            http.ask("POST", rpc(family.b, f"/{call['id']}"), str(number))
            assert answer.text() == str(number)


def test_a_rotated_token_is_void_at_once(shared_cluster, node, http, family, device):
    caller = device(PahoV5, family.a).connect(node)
    become_callable(http, family.b)
    with waiting_polls(node, 1):
        waiting = poll(node, family.b)
    open_call = device(HttpDevice, family.b).connect(node).send_msg(family.a, "1", timeout=60_000, connectTimeout=60_000)
    answer = caller.send_msg(family.b, "1", timeout=60_000)
    call = waiting.response().json
    with waiting_polls(node, 1):
        waiting = poll(node, family.b)
    shared_cluster.accounts.cli("device", "rotate-token", family.b.id, "--yes", "--json").ok()
    changed = time.monotonic()
    assert waiting.response().status == 401
    assert time.monotonic() - changed < 1.5
    assert answer.text() == said.LOST
    assert "No device has this access token!" in open_call.text()
    assert http.ask("POST", rpc(family.b, f"/{call['id']}"), "1").status == 401
    assert http.ask("POST", rpc(family.b), TIME).status == 401
    assert caller.send_msg(family.b, "2").text() == said.OFFLINE
    waiting.close()


def test_a_removed_caller_is_refused_on_its_kept_connection(shared_cluster, http, family):
    assert http.ask("POST", rpc(family.a), TIME).status == 200
    shared_cluster.accounts.cli("device", "remove", "--yes", family.a.id).ok()
    until("it is unknown", lambda: http.ask("POST", rpc(family.a), TIME).status == 401, within_s=1.5)


def test_telemetry_and_attributes_reach_nats(shared_cluster, http, family):
    with NatsListener(shared_cluster.nats.url, f"swb.uplink.*.{family.a.id}.*") as listener:
        for kind, body in [("telemetry", '{"temperature":21}'), ("attributes", '{"fw": "1.0"}')]:
            assert http.ask("POST", f"/api/v1/{family.a.token}/{kind}", body).status == 200
            subject, message = listener.next()
            assert (subject.rsplit(".", 2)[1:], message.decode()) == ([family.a.id, kind], body)


def test_attributes_are_asked_for_and_waited_for_in_vain(new_cluster, device):
    """SDKs do at start; nobody becomes callable by it."""
    cluster = new_cluster(settings={"http.max_poll_timeout_ms": "60000"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    caller = device(PahoV5, family.a).connect(node)
    with RawHttp(node.http_port) as http, RawHttp(node.http_port) as waiting:
        assert http.ask("GET", f"/api/v1/{family.b.token}/attributes?clientKeys=a&sharedKeys=b,c").body == "{}"
        started = time.monotonic()
        updates = f"/api/v1/{family.b.token}/attributes/updates"
        waiting.send(f"GET {updates} HTTP/1.1\nHost: t\n\n")
        assert http.ask("GET", f"{updates}?timeout=300").status == 408
        assert time.monotonic() - started > 0.3
        assert caller.send_msg(family.b, "1").text() == said.OFFLINE
        # Whoever waits is let go by a node that shuts down.
        draining = time.monotonic()
        assert node.term() == 0
        response = waiting.response()
        assert (response.status, response.headers["connection"]) == (408, "close")
        assert time.monotonic() - draining < 5


def test_trace_context_is_carried(node, http, family):
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    become_callable(http, family.b)
    with RawHttp(node.http_port) as caller:
        body = send_msg(family.b)
        caller.send(
            f"POST {rpc(family.a)} HTTP/1.1\nHost: test\nTraceparent: {trace}\nContent-Length: {len(body)}\n\n{body}"
        )
        call = http.ask("GET", rpc(family.b))
        assert call.headers["traceparent"] == trace
        http.ask("POST", rpc(family.b, f"/{call.json['id']}"), "1")
        assert caller.response().body == "1"


def test_limits_of_a_caller(new_cluster, device):
    cluster = new_cluster(
        settings={
            "ingress.calls_per_second_per_device": "1",
            "ingress.call_burst_per_device": "4",
            "ingress.uplinks_per_second_per_device": "1",
            "ingress.uplink_burst_per_device": "2",
            "ingress.max_calls_in_flight_per_caller": "2",
            "ingress.max_connections": "6",
            "shares.per_customer_percent": "100",
        }
    )
    node, family = cluster.nodes[0], cluster.accounts.family()
    hits = lambda limit: node.admin.value("switchboard_limits_hit_total", limit=limit)  # noqa: E731
    # Each request on a connection of its own: what a device may do does not begin anew with it.
    statuses = []
    for _ in range(5):
        with RawHttp(node.http_port) as http:
            response = http.ask("POST", rpc(family.a), TIME)
            statuses.append(response.status)
    assert statuses == [200] * 4 + [429]
    assert (response.body, response.headers["retry-after"]) == (said.BUSY, "1")
    assert hits("call_rate") == 1
    with RawHttp(node.http_port) as http:
        uplink = [http.ask("POST", f"/api/v1/{family.a.token}/telemetry", "{}").status for _ in range(3)]
    assert uplink == [200, 200, 429]
    connections = [RawHttp(node.http_port) for _ in range(2)]
    for connection in connections:
        body = send_msg(family.a, timeout=20_000, connectTimeout=20_000)
        connection.send(f"POST {rpc(family.b)} HTTP/1.1\nHost: t\nContent-Length: {len(body)}\n\n{body}")
    until("both are open", lambda: RawHttp(node.http_port).ask("POST", rpc(family.b), TIME).status == 429)
    assert hits("caller_in_flight") >= 1
    for connection in connections:
        connection.reset()
    # A caller that has gone holds no place.
    until("there is room again", lambda: RawHttp(node.http_port).ask("POST", rpc(family.b), TIME).status == 200)


def test_more_connections_than_there_may_be(new_cluster):
    cluster = new_cluster(settings={"ingress.max_connections": "4", "shares.per_customer_percent": "100"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    kept = [RawHttp(node.http_port) for _ in range(4)]
    for connection in kept:
        assert connection.ask("POST", rpc(family.a), TIME).status == 200
    with RawHttp(node.http_port) as over:
        response = over.response()
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert over.expect_closed() == b""
    assert node.admin.value("switchboard_limits_hit_total", limit="connections") == 1
    kept.pop().close()
    until("there is room", lambda: _status(node, family.a) == 200)
    for connection in kept:
        connection.close()


def _status(node, identity):
    with RawHttp(node.http_port) as http:
        return http.send(f"POST {rpc(identity)} HTTP/1.1\nHost: t\nContent-Length: {len(TIME)}\n\n{TIME}").response().status


# The end of a node.


def test_a_draining_node_lets_polls_go_and_takes_answers(new_cluster, device):
    cluster = new_cluster(nodes=2)
    family = cluster.accounts.family()
    draining, staying = cluster.nodes
    caller = device(PahoV5, family.a).connect(staying)
    with RawHttp(draining.http_port) as http, RawHttp(draining.http_port) as idle:
        become_callable(http, family.b)
        become_callable(idle, family.c)
        answer = caller.send_msg(family.b, "1", timeout=20_000)
        call = http.ask("GET", rpc(family.b)).json
        with waiting_polls(draining, 1):
            waiting = poll(draining, family.c)
        draining.process.term()
        response = waiting.response()
        assert (response.status, response.headers["connection"]) == (408, "close")
        until("nobody can call", lambda: '"online":true' not in caller.get_devices({"online": True}))
        # The answer may come on the connection that it has, or, as here, on a new one.
        with RawHttp(draining.http_port) as late:
            response = late.ask("POST", rpc(family.b, f"/{call['id']}"), '"in time"')
            assert (response.status, response.headers["connection"]) == (200, "close")
        assert answer.text() == '"in time"'
        assert draining.process.wait() == 0
        assert not [line for line in draining.process.log_lines() if line["level"] in ("ERROR", "WARN")]


def test_what_a_draining_node_still_owes_is_cut_off_in_the_end(new_cluster, device):
    cluster = new_cluster(nodes=2, settings={"ingress.drain_ms": "700"})
    family = cluster.accounts.family()
    draining, staying = cluster.nodes
    device(PahoV5, family.b).connect(staying).become_callable()
    caller = device(PahoV5, family.a).connect(staying)
    with RawHttp(draining.http_port) as http:
        become_callable(http, family.c)
        answer = caller.send_msg(family.c, "1", timeout=60_000)
        http.ask("GET", rpc(family.c))
        unanswered = device(HttpDevice, family.c).connect(draining).send_msg(family.b, "1", timeout=60_000)
        until("it is open", lambda: staying.admin.value("switchboard_claims_held") == 1)
        assert draining.term() == 0
        assert answer.text() == said.LOST
        assert "shutting down" in unanswered.text()


@pytest.mark.parametrize("via", ["mqtt", "http", "coap"])
def test_the_command_calls_as_a_device_does(node, family, device, via):
    device(HttpDevice, family.b).connect(node).become_callable(echo)
    address = f"127.0.0.1:{getattr(node, f'{via}_port')}"

    def call(token, to, *more):
        return run(built("switchboard"), "call", "--via", via, "--at", address, "--token", token, "--to", to, *more)

    by_id, by_name = call(family.a.token, family.b.id, '{"x": 1}'), call(family.a.token, family.b.name, "[2]")
    assert (by_id.ok().out.strip(), by_name.ok().out.strip()) == ('{"x": 1}', "[2]")
    assert json.loads(call(family.a.token, "B", "--json", "3").ok().out)["body"] == 3
    offline = call(family.a.token, family.c.id)
    assert (offline.code, offline.out.strip()) == (1, said.OFFLINE)
    nobody = call("nobody", family.b.id)
    assert nobody.code == 1
    assert "no device has this access token" in nobody.err
    nowhere = call(family.a.token, "nowhere")
    assert nowhere.code == 1
    assert family.b.name in nowhere.err, "it says who there is"
