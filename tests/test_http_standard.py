"""What does HTTP ask of a server (RFC 9110, 9112), and what does a bad client get?"""

import json
import resource
import socket
import time

import pytest
from harness import said
from harness.asked import TIME, send_msg
from harness.devices import HttpDevice, PahoV5
from harness.devices.device import answering, echo
from harness.raw_http import RawHttp, rpc
from harness.waiting import until


def post(path, body, *headers):
    return "\n".join([f"POST {path} HTTP/1.1", "Host: t", f"Content-Length: {len(body)}", *headers, "", ""])


# Methods.


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("rpc", "GET, POST, OPTIONS"),
        ("rpc/1", "POST, OPTIONS"),
        ("telemetry", "POST, OPTIONS"),
        ("attributes", "GET, POST, OPTIONS"),
        ("attributes/updates", "GET, OPTIONS"),
        ("/mqtt", "GET, OPTIONS"),
    ],
)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_other_methods_do_nothing_but_say_which_there_are(http, family, path, methods, known):
    path = path if path == "/mqtt" else f"/api/v1/{family.a.token if known else 'nobody'}/{path}"
    for method in ("HEAD", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "GET", "POST"):
        if method not in methods:
            response = http.ask(method, path, "{}" if method in ("PUT", "PATCH", "POST") else None)
            assert (response.status, response.headers["allow"], response.body) == (405, methods, ""), method
    response = http.ask("OPTIONS", path)
    assert (response.status, response.headers["allow"]) == (204, methods)
    assert "content-length" not in response.headers, "RFC 9110 §8.6"
    assert not [name for name in response.headers if name.startswith("access-control")], "nobody asked"


def test_head_is_no_poll(node, http, family, device):
    """It makes nobody callable, takes no call, and leaves the device's other session alone."""
    caller = device(PahoV5, family.a).connect(node)
    with RawHttp(node.http_port) as head:
        assert head.ask("HEAD", rpc(family.b, "?timeout=5000")).status == 405
        assert caller.send_msg(family.b, "1").text() == said.OFFLINE
        session = device(PahoV5, family.b).connect(node).become_callable(answering('"here"'))
        for method in ("HEAD", "OPTIONS", "TRACE"):
            head.ask(method, rpc(family.b, "?timeout=5000"))
            head.ask(method, f"/api/v1/{family.b.token}/telemetry")
        assert caller.send_msg(family.b, "1").text() == '"here"'
        assert not session.ended.is_set()


# Web pages of other origins (CORS).

PAGE = {"Origin": "https://app.example"}
QUESTION = PAGE | {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type,traceparent"}


def cors(response):
    prefix = "access-control-"
    return {name.removeprefix(prefix): it for name, it in response.headers.items() if name.startswith(prefix)}


def test_pages_of_any_origin_may_use_the_device_api(http, family):
    for path, methods in [(rpc(family.a), "GET, POST, OPTIONS"), ("/api/v1/nobody/telemetry", "POST, OPTIONS")]:
        preflight = http.ask("OPTIONS", path, **QUESTION)
        assert preflight.status == 204
        told = cors(preflight)
        assert "Switchboard-Outcome" in told.pop("expose-headers")
        assert told == {"allow-origin": "*", "allow-methods": methods, "allow-headers": "*", "max-age": "7200"}
    table = [
        (("POST", rpc(family.a), TIME), 200),
        (("POST", rpc(family.a), "["), 400),
        (("POST", "/api/v1/nobody/rpc", TIME), 401),
        (("GET", "/api/v1/nobody/nowhere"), 404),
        (("GET", rpc(family.a, "/1")), 405),
        (("GET", rpc(family.a, "?timeout=1")), 408),
        (("POST", rpc(family.a), "x" * 70_000), 413),
    ]
    for request, status in table:
        response = http.ask(*request, **PAGE)
        assert response.status == status
        assert response.headers["access-control-allow-origin"] == "*", request
        assert response.headers.get("www-authenticate") == ("Switchboard-Token" if status == 401 else None)
        assert "Retry-After" in response.headers["access-control-expose-headers"], request


def test_pages_of_the_origins_that_are_set(new_cluster):
    cluster = new_cluster(settings={"http.cors_origins": "https://app.example,http://localhost:3000"})
    family = cluster.accounts.family()
    with RawHttp(cluster.nodes[0].http_port) as http:
        for origin, allowed in [("http://localhost:3000", True), ("http://localhost", False), (None, False)]:
            headers = {} if origin is None else {"Origin": origin}
            preflight = http.ask("OPTIONS", rpc(family.a), **(QUESTION | headers if headers else {}))
            response = http.ask("POST", rpc(family.a), TIME, **headers)
            assert (preflight.status, response.status) == (204, 200), "browsers keep the answer from the page"
            for it in (preflight, response):
                assert it.headers.get("access-control-allow-origin") == (origin if allowed else None)
                assert it.headers["vary"] == "Origin"


def test_no_page_of_another_origin(new_cluster):
    cluster = new_cluster(settings={"http.cors_origins": ""})
    family = cluster.accounts.family()
    with RawHttp(cluster.nodes[0].http_port) as http:
        assert not cors(http.ask("OPTIONS", rpc(family.a), **QUESTION))
        assert not cors(http.ask("POST", rpc(family.a), TIME, **PAGE))


def test_a_preflight_asks_nobody(shared_cluster, http):
    asked = lambda: sum(  # noqa: E731
        node.admin.value("switchboard_connects_total", result=result)
        for node in shared_cluster.nodes
        for result in ("accepted", "unknown_token", "unavailable")
    )
    before = asked()
    for number in range(50):
        assert http.ask("OPTIONS", f"/api/v1/guess-{number}/rpc", **QUESTION).status == 204
    assert asked() == before


# Where a request ends.


@pytest.mark.parametrize("path", ["rpc", "telemetry", "rpc/1", "nowhere"])
def test_a_refusal_before_the_body_leaves_the_connection_usable(node, http, family, path):
    status = 404 if path == "nowhere" else 401
    for body in ("{}", "x" * 60_000):
        request = post(f"/api/v1/nobody/{path}", body)
        assert http.send(request + body).response().status == status, "in one piece"
        http.send(request)
        time.sleep(0.05)
        assert http.send(body).response().status == status, "in two"
        http.send(f"POST /api/v1/nobody/{path} HTTP/1.1\nHost: t\nTransfer-Encoding: chunked\n\n")
        http.send(f"{len(body):x}\n{body}\n0\n\n")
        assert http.response().status == status, "in chunks"
        assert http.ask("POST", rpc(family.a), TIME).status == 200


@pytest.mark.parametrize("length", [70_000, 99_999_999_999_999, 5], ids=["large", "absurd", "withheld"])
def test_a_refusal_whose_body_is_not_read_closes_and_says_so(http, length):
    started = time.monotonic()
    http.send(f"POST /api/v1/nobody/rpc HTTP/1.1\nHost: t\nContent-Length: {length}\n\n{{")
    response = http.response()
    assert (response.status, response.headers["connection"]) == (401, "close")
    assert http.expect_closed() == b""
    assert time.monotonic() - started < 5


def test_a_client_that_waits_to_go_on_is_told_first_whether_it_may(node, http, family):
    """RFC 9110 §10.1.1."""
    http.send(post(rpc(family.a), TIME, "Expect: 100-continue"))
    assert http.socket.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert http.send(TIME).response().status == 200
    response = http.send(post("/api/v1/nobody/rpc", TIME, "Expect: 100-continue")).response()
    assert (response.status, response.headers["connection"]) == (401, "close"), "no 100 before it"
    assert http.expect_closed() == b""


def test_bodies_are_read_only_for_who_may_send_them(new_cluster):
    cluster = new_cluster(
        settings={
            "ingress.calls_per_second_per_device": "1",
            "ingress.call_burst_per_device": "1",
            "ingress.uplinks_per_second_per_device": "1",
            "ingress.uplink_burst_per_device": "1",
        }
    )
    node, family = cluster.nodes[0], cluster.accounts.family()
    for path, body in [("rpc", TIME), ("telemetry", "{}"), ("attributes", "{}")]:
        with RawHttp(node.http_port) as http:
            path = f"/api/v1/{family.a.token}/{path}"
            http.ask("POST", path, body)
            response = http.send(post(path, body, "Expect: 100-continue")).response()
            assert response.status == 429, path
            assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST {} HTTP/1.1\n", 400),
        ("POST {} HTTP/1.1\nHost: t\nHost: t\n", 400),
        ("POST {} HTTP/1.1\nHost: t/x\n", 400),
        ("POST {} HTTP/1.1\nHost:\n", 200),
        ("POST {} HTTP/1.1\nHost: [::1]:8080\n", 200),
        ("POST http://other.example{} HTTP/1.1\nHost: t\n", 200),
        ("POST {} HTTP/1.0\n", 200),
    ],
)
def test_a_request_names_one_host(http, family, head, status):
    """RFC 9112 §3.2."""
    http.send(head.format(rpc(family.a)) + f"Content-Length: {len(TIME)}\n\n{TIME}")
    response = http.response()
    assert response.status == status, response


# The end of input is not the end of a client.


def test_a_caller_that_sends_no_more_is_answered(node, family, device):
    target = device(PahoV5, family.b).connect(node).become_callable()
    body = send_msg(family.b, "1")
    with RawHttp(node.http_port) as caller:
        caller.send(post(rpc(family.a), body) + body)
        caller.socket.shutdown(socket.SHUT_WR)
        target.next_call().answer('"done"')
        assert caller.response().body == '"done"'
        assert caller.expect_closed() == b""


def test_a_caller_that_sent_its_end_first_is_answered(http, family):
    for body in (TIME, '{"method":"getDevices"}'):
        with RawHttp(http.socket.getpeername()[1]) as caller:
            caller.send(post(rpc(family.a), body) + body)
            caller.socket.shutdown(socket.SHUT_WR)
            assert caller.response().status == 200


def test_a_caller_that_resets_its_connection_holds_no_place(new_cluster):
    cluster = new_cluster(settings={"ingress.max_calls_in_flight_per_caller": "2"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    body = send_msg(family.b, timeout=60_000, connectTimeout=60_000)
    callers = [RawHttp(node.http_port).send(post(rpc(family.a), body) + body) for _ in range(2)]
    with RawHttp(node.http_port) as http:
        until("both are open", lambda: http.ask("POST", rpc(family.a), TIME).status == 429)
        for caller in callers:
            caller.reset()
        until("there is room again", lambda: http.ask("POST", rpc(family.a), TIME).status == 200)


# What no well-behaved client sends.


def test_a_body_that_is_too_large(node, http, family):
    exact = '"' + "x" * 65_534 + '"'
    assert http.ask("POST", f"/api/v1/{family.a.token}/telemetry", exact).status == 200
    response = http.ask("POST", rpc(family.a), exact + " ")
    assert (response.status, response.headers["connection"]) == (413, "close")
    assert http.expect_closed() == b""
    with RawHttp(node.http_port) as chunked:
        chunked.send(f"POST {rpc(family.a)} HTTP/1.1\nHost: test\nTransfer-Encoding: chunked\n\n")
        for _ in range(5):
            chunked.send("8000\n" + "x" * 0x8000 + "\n")
        assert chunked.response().status == 413
    with RawHttp(node.http_port) as announced:
        # Nothing is kept free for what is only announced.
        announced.send(f"POST {rpc(family.a)} HTTP/1.1\nHost: test\nContent-Length: 99999999999999\n\n")
        assert announced.response().status == 413


def test_a_chunked_body_is_one_request(http, family):
    http.send(f"POST {rpc(family.a)} HTTP/1.1\nHost: test\nTransfer-Encoding: chunked\n\n")
    for part in TIME:
        http.send(f"1\n{part}\n")
    assert http.send("0\n\n").response().status == 200


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        ("FFFFFFFFFFFFFFFF\n", 413),
        ("10001\n", 413),
        ("8000\n" + "x" * 0x8000 + "\n8001\n", 413),
        ("1;" + "e" * 300, 413),
        ("000000000000000000001\n", 400),
        ("not a size\n", 400),
    ],
    ids=lambda it: repr(it)[:30],
)
@pytest.mark.parametrize("pause", [False, True], ids=["at once", "later"])
def test_a_chunk_that_cannot_be_is_refused_at_once(http, family, chunks, status, pause):
    """Not when its bytes have not come in time."""
    started = time.monotonic()
    assert http.ask("POST", rpc(family.a), TIME).status == 200
    head = f"POST {rpc(family.a)} HTTP/1.1\nHost: t\nTransfer-Encoding: chunked\n\n"
    if pause:
        http.send(head)
        time.sleep(0.05)
        http.send(chunks)
    else:
        http.send(head + chunks)
    response = http.response()
    assert (response.status, response.headers["connection"]) == (status, "close")
    assert http.expect_closed() == b""
    assert time.monotonic() - started < 5


def test_chunks_that_can_be_are_taken_on_a_kept_connection(http, family):
    """Whatever is cut where, and with extensions that nobody asked for."""
    texts = [TIME, '"' + "F" * 9_000 + '"', "0\n\nPOST /api"]
    for text in texts * 3:
        http.send(f"POST /api/v1/{family.a.token}/telemetry HTTP/1.1\nHost: t\nTransfer-Encoding: chunked\n\n")
        for at in range(0, len(text), 700):
            part = text[at : at + 700]
            http.send(f"{len(part.replace(chr(10), chr(13) + chr(10))):x};a=b\n{part}\n")
        assert http.send("0\nTrailer: x\n\n").response().status == (400 if text.startswith("0") else 200)
        assert http.ask("POST", rpc(family.a), TIME).status == 200


def test_slow_senders_are_cut_off(new_cluster):
    cluster = new_cluster(settings={"http.header_timeout_ms": "500", "http.request_timeout_ms": "700"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    with RawHttp(node.http_port) as silent, RawHttp(node.http_port) as head, RawHttp(node.http_port) as body:
        started = time.monotonic()
        head.send(f"POST {rpc(family.a)} HTTP/1.1\nHost: te")
        body.send(f"POST {rpc(family.a)} HTTP/1.1\nHost: test\nContent-Length: 30\n\n{{")
        silent.expect_closed()
        head.expect_closed()
        response = body.response()
        assert (response.status, response.headers["connection"]) == (408, "close")
        body.expect_closed()
        assert 0.4 < time.monotonic() - started < 10


def test_an_idle_connection_is_kept_longer_than_a_slow_head(new_cluster):
    cluster = new_cluster(settings={"http.header_timeout_ms": "300", "http.idle_timeout_ms": "1500"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    with RawHttp(node.http_port) as idle, RawHttp(node.http_port) as slow:
        for connection in (idle, slow):
            assert connection.ask("POST", rpc(family.a), TIME).status == 200
        time.sleep(0.7)
        assert idle.ask("POST", rpc(family.a), TIME).status == 200
        began = time.monotonic()
        slow.send("POST /a")
        slow.expect_closed()
        assert 0.2 < time.monotonic() - began < 1.2, "a further head has the time of a first"
        idle.expect_closed()
        assert 1.2 < time.monotonic() - began < 10


def test_a_client_that_does_not_read_is_cut_off(new_cluster):
    cluster = new_cluster(settings={"http.request_timeout_ms": "500"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    body = json.dumps({"method": "x" * 64})
    request = f"POST {rpc(family.a)} HTTP/1.1\nHost: t\nContent-Length: {len(body)}\n\n{body}".replace("\n", "\r\n").encode()
    with RawHttp(node.http_port) as deaf:
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.socket.settimeout(20)
        with pytest.raises(OSError):  # noqa: PT012
            for _ in range(200_000):
                deaf.socket.sendall(request)
    with RawHttp(node.http_port) as http:
        assert http.ask("POST", rpc(family.a), TIME).status == 200


def test_pipelined_requests_are_answered_in_order(node, http, family):
    one = f"POST {rpc(family.a)} HTTP/1.1\nHost: t\nContent-Length: {len(TIME)}\n\n{TIME}"
    two = f"POST {rpc(family.a, '/7')} HTTP/1.1\nHost: t\nContent-Length: 1\n\n1"
    http.send((one + two) * 20)
    assert [http.response().status for _ in range(40)] == [200, 404] * 20


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GARBAGE\n\n", 400),
        ("GET / HTTP/9.9\nHost: t\n\n", 400),
        ("POST /api/v1/t/rpc HTTP/1.1\nHost: t\nContent-Length: -1\n\n", 400),
        ("POST /api/v1/t/rpc HTTP/1.1\nHost: t\nContent-Length: 1\nContent-Length: 2\n\n1", 400),
        ("POST /api/v1/t/rpc HTTP/1.1\nHost: t\nContent-Length: 5\nTransfer-Encoding: chunked\n\n0\n\n", 401),
        ("POST /api/v1/t/rpc HTTP/1.1\nHost: t\nTransfer-Encoding: gzip\n\n", 400),
        ("GET /api/v1/\xff\xfe/rpc HTTP/1.1\nHost: t\n\n", 400),
        ("GET /" + "x" * 20_000 + " HTTP/1.1\nHost: t\n\n", 414),
        ("GET / HTTP/1.1\n" + "X: y\n" * 200 + "\n", 431),
        ("GET / HTTP/1.1\nX: " + "y" * 20_000 + "\n\n", 431),
    ],
    ids=lambda it: repr(it)[:60],
)
def test_bytes_that_are_no_request(http, request_text, status):
    response = http.send(request_text.replace("\n", "\r\n").encode("latin-1")).response()
    assert response.status in ((status, 431) if status == 414 else (status,)), response


def test_a_body_shorter_than_it_says_ends_with_its_connection(node, family):
    before = node.admin.value("switchboard_calls_total", method="getTime", outcome="answered")
    with RawHttp(node.http_port) as liar:
        liar.send(f"POST {rpc(family.a)} HTTP/1.1\nHost: t\nContent-Length: 500\n\n{TIME}")
        liar.socket.shutdown(socket.SHUT_WR)
        liar.expect_closed()
    assert node.admin.value("switchboard_calls_total", method="getTime", outcome="answered") == before


def test_a_body_longer_than_it_says_is_a_request_of_its_own_and_none(http, family):
    http.send(f"POST {rpc(family.a)} HTTP/1.1\nHost: t\nContent-Length: {len(TIME)}\n\n{TIME}{TIME}\n\n")
    assert http.response().status == 200
    assert http.response().status == 400


def test_ten_thousand_half_open_requests_disturb_nobody(node, family, device):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = node.admin.value("process_resident_memory_bytes")
    target = device(HttpDevice, family.b).connect(node).become_callable(echo)
    caller = device(PahoV5, family.a).connect(node)
    half = []
    for number in range(10_000):
        connection = socket.create_connection(("127.0.0.1", node.http_port), 20)
        connection.sendall(b"POST /api/v1/x/rpc HTTP/1.1\r\nContent-Length: 65536\r\n" + b"\r\n{" * (number % 2))
        half.append(connection)
    assert caller.send_msg(family.b, "1").text() == "1"
    # What a length says is not set aside before it has come.
    assert node.admin.value("process_resident_memory_bytes") - before < 10_000 * 40_000
    for connection in half:
        connection.close()
    assert caller.send_msg(family.b, "2").text() == "2"
    assert not target.ended.is_set()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
