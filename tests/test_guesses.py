"""What does it cost to guess access tokens? Turns that are waited for, then a refusal, and nobody else pays for it."""

import json
import socket
import struct
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
from harness.accounts import TOKENS
from harness.cluster import Cluster, Ingress
from harness.processes import run
from harness.programs import built
from harness.raw_http import RawHttp
from harness.raw_mqtt import RawMqtt
from harness.waiting import PATIENCE_S, until

T = TypeVar("T")

TIME = '{"method":"getTime"}'
# What a guess came to, whatever the protocol says for it.
IN, UNKNOWN, TOO_MANY = "in", "unknown", "too many"
# Whole sources: every test takes others.
NUMBERS = iter(range(10, 250))


def over_mqtt(version: int, codes: dict[int, str]) -> Callable[[Ingress, str, str], str]:
    def show(node: Ingress, token: str, source: str) -> str:
        with RawMqtt(node.mqtt_port, version, source) as client:
            return codes[client.connect(token).code]

    return show


def over_http(node: Ingress, token: str, source: str, **headers: str) -> str:
    with RawHttp(node.http_port, source) as client:
        response = client.ask("POST", f"/api/v1/{token}/rpc", TIME, **headers)
    assert ("retry-after" in response.headers) == (response.status == 429)
    return {200: IN, 401: UNKNOWN, 429: TOO_MANY}[response.status]


def over_coap(node: Ingress, token: str, source: str) -> str:
    segments = [b"api", b"v1", token.encode(), b"rpc"]
    path = b"".join(_option(11 if n == 0 else 0, segment) for n, segment in enumerate(segments))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((source, 0))
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", node.coap_port))
        client.send(struct.pack(">BBH", 0x40, 0x02, 7) + path + b"\xff" + TIME.encode())
        while True:
            said = client.recv(2048)
            # An empty acknowledgement: the answer is still to come.
            if said[1] != 0:
                return {0x45: IN, 0x81: UNKNOWN, 0x9D: TOO_MANY}[said[1]]


def _option(delta: int, value: bytes) -> bytes:
    if len(value) < 13:
        return bytes([delta << 4 | len(value)]) + value
    return bytes([delta << 4 | 13, len(value) - 13]) + value


PROTOCOLS = {
    "mqtt3": over_mqtt(4, {0: IN, 5: UNKNOWN, 3: TOO_MANY}),
    "mqtt5": over_mqtt(5, {0: IN, 0x87: UNKNOWN, 0x9F: TOO_MANY}),
    "http": over_http,
    "coap": over_coap,
}
SHOWN = pytest.mark.parametrize("show", PROTOCOLS.values(), ids=PROTOCOLS)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory):
    """A node that is soon tired of guesses, behind two proxies: an address each for the PROXY protocol and for HTTP's."""
    settings = {
        "ingress.guess_burst_per_source": "3",
        "mqtt.trusted_proxies": "127.0.1.0/24",
        "http.trusted_proxies": "127.0.1.0/24",
    }
    cluster = Cluster(tmp_path_factory.mktemp("guarded"), settings=settings)
    yield cluster
    cluster.stop()


def a_source() -> str:
    return f"127.0.0.{next(NUMBERS)}"


def wrong() -> str:
    token = f"wrong-{uuid.uuid4().hex}"
    TOKENS.add(token)
    return token


def volley(guesses: int, guess: Callable[[], T]) -> list[T]:
    """What guesses came to that were made at once."""
    with ThreadPoolExecutor(guesses) as pool:
        return [it.result() for it in [pool.submit(guess) for _ in range(guesses)]]


def asked(cluster: Cluster) -> float:
    """How often an authorizer was asked whose a token is."""
    return sum(it.admin.value("switchboard_authorizer_authentications_total") for it in cluster.authorizers)


@SHOWN
def test_who_guesses_waits_for_his_turn_and_is_refused(guarded, show):
    node, source, family = guarded.nodes[0], a_source(), guarded.accounts.family()
    assert show(node, family.a.token, source) == IN
    began = time.monotonic()
    free = [show(node, wrong(), source) for _ in range(3)]
    assert free == [UNKNOWN] * 3
    # One earned a second: nobody gets more, however he asks.
    guesses = volley(12, lambda: show(node, wrong(), source))
    assert TOO_MANY in guesses
    assert guesses.count(UNKNOWN) <= time.monotonic() - began + 1
    # Behind the same address: a device that was let in here passes, and so does everybody from elsewhere.
    assert show(node, family.a.token, source) == IN
    assert show(node, family.b.token, a_source()) == IN
    assert node.admin.value("switchboard_connects_total", result="too_many_guesses") >= 1
    assert node.admin.value("switchboard_limits_hit_total", limit="guesses") >= 1
    # A new one behind it is let in when it comes to its turn.
    until("it is its turn", lambda: show(node, family.c.token, source) == IN)


def test_no_more_questions_reach_an_authorizer(guarded):
    """Of many guesses at once, and of the same wrong token again and again."""
    node, source = guarded.nodes[0], a_source()
    before, began = asked(guarded), time.monotonic()
    # Those that are under way together before the first has failed are free, and paid for afterwards.
    volley(12, lambda: over_http(node, wrong(), source))
    guesses = [it for _ in range(5) for it in volley(20, lambda: over_http(node, wrong(), source))]
    assert TOO_MANY in guesses
    assert asked(guarded) - before <= 12 + 3 + 1 + time.monotonic() - began
    other, token = a_source(), wrong()
    before = asked(guarded)
    with RawHttp(node.http_port, other) as client:
        statuses = [client.ask("POST", f"/api/v1/{token}/rpc", TIME).status for _ in range(200)]
    assert set(statuses) == {401}, "it is no new guess"
    assert asked(guarded) - before <= 3


def test_a_token_that_is_added_meanwhile_is_let_in(guarded):
    node, source, token = guarded.nodes[0], a_source(), wrong()
    assert over_http(node, token, source) == UNKNOWN
    family = guarded.accounts.family()
    guarded.accounts.cli("device", "add", "New", "--tenant", family.a.tenant, "--token", token, "--json").ok()
    until("it is in", lambda: over_http(node, token, source) == IN)


def test_the_node_as_a_whole_is_guessed_at_no_faster(new_cluster):
    """Each guess from an address of its own. Who has guessed nothing comes to a turn, and who is known need not wait."""
    cluster = new_cluster(settings={"ingress.guesses_per_second": "2", "ingress.guess_burst": "5"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    assert over_http(node, family.a.token, "127.0.3.1") == IN
    began = time.monotonic()
    assert [over_http(node, wrong(), f"127.0.2.{number}") for number in range(1, 6)] == [UNKNOWN] * 5
    others = iter(range(6, 26))
    guesses = volley(20, lambda: over_http(node, wrong(), f"127.0.2.{next(others)}"))
    assert TOO_MANY in guesses
    assert guesses.count(UNKNOWN) <= 1 + 2 * (time.monotonic() - began)
    assert over_http(node, wrong(), "127.0.2.1") == TOO_MANY, "it has guessed before"
    assert over_http(node, family.a.token, "127.0.2.1") == IN
    until("a new one has its turn", lambda: over_http(node, family.b.token, "127.0.3.2") == IN)


def header_v1(source: str) -> bytes:
    return f"PROXY TCP4 {source} 127.0.0.1 40000 1883\r\n".encode()


def header_v2(source: str) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton("127.0.0.1") + struct.pack(">HH", 40000, 1883)
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack(">BBH", 0x21, 0x11, len(addresses)) + addresses


@pytest.mark.parametrize("header", [header_v1, header_v2])
def test_a_proxy_says_who_is_behind_it(guarded, header):
    node, family = guarded.nodes[0], guarded.accounts.family()

    def show(token: str, source: str) -> int:
        with RawMqtt(node.mqtt_port, 4, "127.0.1.1") as client:
            client.send(header(source))
            return client.connect(token).code

    bad, good = a_source(), a_source()
    assert [show(wrong(), bad) for _ in range(3)] == [5] * 3
    assert 3 in volley(12, lambda: show(wrong(), bad))
    assert show(wrong(), good) == 5, "a source of its own"
    assert show(family.a.token, good) == 0


@pytest.mark.parametrize("header", [header_v1, header_v2])
def test_nobody_else_is_believed_and_a_proxy_must_say_it(guarded, header):
    node, family = guarded.nodes[0], guarded.accounts.family()
    with RawMqtt(node.mqtt_port, 4, a_source()) as stranger:
        stranger.send(header("192.0.2.1") + b"\x10")
        stranger.expect_closed()
    with RawMqtt(node.mqtt_port, 4, "127.0.1.1") as silent:
        silent.send(b"\x10" + bytes(20))
        silent.expect_closed()
    # HTTP's proxies speak HTTP here: a header of that kind is no request, whoever sends it.
    for source in (a_source(), "127.0.1.1"):
        with RawHttp(node.http_port, source) as client:
            client.send(header("192.0.2.1") + f"POST /api/v1/{family.a.token}/rpc HTTP/1.1\r\n\r\n".encode())
            assert b" 200 " not in client.expect_closed()


def test_forwarded_for_is_believed_of_a_proxy_alone(guarded):
    node, stranger = guarded.nodes[0], a_source()
    numbers = iter(range(1, 255))

    def guess(source: str, template: str) -> str:
        return over_http(node, wrong(), source, X_Forwarded_For=template.format(next(numbers)))

    def tires(source: str, template: str) -> bool:
        first = [guess(source, template) for _ in range(3)]
        return TOO_MANY in first + volley(12, lambda: guess(source, template))

    assert tires(stranger, "192.0.2.{}"), "a stranger's header makes no other of him"
    assert not tires("127.0.1.1", "192.0.2.{}"), "each has guessed once"
    # What a client wrote itself stands before what the proxy adds.
    assert tires("127.0.1.1", "198.51.100.{}, 203.0.113.1")


def test_http_behind_the_proxy_protocol(new_cluster):
    cluster = new_cluster(
        settings={
            "ingress.guess_burst_per_source": "3",
            "http.trusted_proxies": "127.0.1.1",
            "http.proxy_protocol": "true",
            "http.header_timeout_ms": "500",
        }
    )
    node, family = cluster.nodes[0], cluster.accounts.family()

    def show(token: str, source: str, header: Callable[[str], bytes]) -> int:
        with RawHttp(node.http_port, "127.0.1.1") as client:
            client.send(header(source))
            # Who is behind a proxy of TCP writes what he likes.
            return client.ask("POST", f"/api/v1/{token}/rpc", TIME, X_Forwarded_For="192.0.2.200").status

    for header, bad, good in ((header_v1, "192.0.2.1", "192.0.2.2"), (header_v2, "192.0.2.3", "192.0.2.4")):
        assert [show(wrong(), bad, header) for _ in range(3)] == [401] * 3
        assert 429 in volley(12, lambda bad=bad, header=header: show(wrong(), bad, header))
        assert show(wrong(), good, header) == 401
        assert show(family.a.token, good, header) == 200
    with RawHttp(node.http_port, a_source()) as stranger:
        stranger.send(header_v1("192.0.2.9"))
        assert b" 400 " in stranger.expect_closed()
    for first in (b"", b"POST / HTTP/1.1\r\nHost: test\r\n\r\n"):
        with RawHttp(node.http_port, "127.0.1.1") as silent:
            silent.send(first)
            assert silent.expect_closed() == b""


def test_settings_that_are_no_networks(tmp_path):
    config = tmp_path / "switchboard.toml"
    config.write_text('[http]\ntrusted_proxies = "10.0.0.1/8"\n[mqtt]\ntrusted_proxies = "proxy.example"\n')
    checked = run(built("switchboard"), "config", "check", "--config", str(config))
    assert checked.code != 0
    for setting in ("http.trusted_proxies", "mqtt.trusted_proxies"):
        assert setting in checked.err
    assert checked.err.count("networks by their first address") == 2, json.dumps(checked.err)
