"""How do applications call over NATS, each as itself alone? With nats-py, under accounts as deploy/nats has them."""

import asyncio
import json
import re
import secrets
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import nats
import pytest
from harness.accounts import TENANT, TOKENS
from harness.apps import add_app
from harness.devices import PahoV5
from harness.hardened import CONFIGURATION, Hardened
from harness.programs import tool
from harness.raw_http import RawHttp
from harness.raw_nats import RawNats
from harness.sse import Listener
from harness.waiting import PATIENCE_S, until

PASSWORD = f"of-backend-{secrets.token_hex(8)}"


class Applications:
    """Two applications of a tenant, each with its account."""

    def __init__(self, folder) -> None:
        TOKENS.add(PASSWORD)
        self.hardened = Hardened(folder, apis=1, settings={"authorizer.answer_applications": "true"})
        self.accounts = self.hardened.cluster.accounts
        self.family = self.accounts.family()
        self.apps = [add_app(self.accounts, "--customer", self.family.customer) for _ in range(2)]
        self.tenant = next(it["id"] for it in json.loads(self.accounts.cli("tenant", "list", "--json").ok().out) if it["name"] == TENANT)
        self._configuration, self._reloads = folder / "permissions.conf", 0
        self._configuration.write_text(self.with_accounts([self.account(app.id) for app in self.apps]))
        # Of a new account NATS 2.15 finds who listens to what it imports from the second time on.
        self.reload()
        self.reload()

    def account(self, app: str, of: str = "") -> str:
        """As the README has it, with a user of the account's name; it calls as `of`, itself unless told."""
        (block,) = re.findall(r'```\n("APPLICATION": .*?)```', (CONFIGURATION / "README.md").read_text(), re.DOTALL)
        block = block.replace("user: backend", f'user: "{app}"').replace("$BACKEND_PASSWORD", PASSWORD).replace("TENANT", self.tenant)
        return block.replace("APPLICATION", app, 1).replace("APPLICATION", of or app)

    def with_accounts(self, accounts: list[str]) -> str:
        return self._configuration.read_text().replace("accounts {\n", "accounts {\n" + "\n".join(accounts), 1)

    def reload(self) -> None:
        nats_server = self.hardened.cluster.nats.process
        nats_server.signal(signal.SIGHUP)
        until("NATS has read its configuration again", lambda: nats_server.err.count("Reloaded server configuration") > self._reloads)
        self._reloads += 1

    def is_valid(self, folder, accounts: list[str]) -> subprocess.CompletedProcess:
        """What NATS says to a configuration with more accounts."""
        file = folder / "permissions.conf"
        file.write_text(re.sub(r"\$SWITCHBOARD_\w+", PASSWORD, self.with_accounts(accounts)))
        return subprocess.run([tool("nats-server"), "-t", "-c", file], capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    def subject(self, app, device: str) -> str:
        return f"swb.app.{self.tenant}.{app.id}.call.{device}"

    def connect(self, app) -> RawNats:
        connection = RawNats(self.hardened.cluster.nats.url, app.id, PASSWORD)
        assert connection.refused is None
        connection.inbox = f"_INBOX.{secrets.token_hex(8)}"
        return connection

    def ask(self, app, *asked: tuple[str, bytes, dict[str, str]]):
        """Asks as a program that knows nats-py and nothing of ours."""

        async def asking():
            connection = await nats.connect(self.hardened.cluster.nats.url, user=app.id, password=PASSWORD)
            try:
                return [await connection.request(subject, body, PATIENCE_S, headers=headers) for subject, body, headers in asked]
            finally:
                await connection.close()

        return asyncio.run(asking())


@pytest.fixture(scope="module")
def applications(tmp_path_factory):
    applications = Applications(tmp_path_factory.mktemp("cluster"))
    yield applications
    applications.hardened.cluster.stop()


@pytest.fixture
def target(applications, device):
    return device(PahoV5, applications.family.a).connect(applications.hardened.cluster.nodes[0]).become_callable()


def test_an_application_calls_and_is_told_in_headers(applications, target):
    (app, _), family = applications.apps, applications.family
    own, before = applications.subject(app, family.a.id), len(applications.hardened.violations())
    observer = add_app(applications.accounts, "--role", "observer")
    api = applications.hardened.cluster.apis[0]
    listener = Listener(api.port, "/v1/events?kinds=call", {"Authorization": observer.bearer})
    listener.until("live")
    with ThreadPoolExecutor() as pool:
        called = pool.submit(applications.ask, app, (own, b'{"method":"blink","params":{"a" : 1.50}}', {"Swb-Timeout": "20000"}))
        taken = target.next_call()
        assert taken.text == '{"method":"blink","params":{"a" : 1.50}}'
        taken.answer('{"b" : 2.50}')
        (answer,) = called.result()
    assert answer.data == b'{"b" : 2.50}'
    assert (answer.headers["Swb-Outcome"], answer.headers["Swb-Seen"]) == ("answered", "yes")
    assert "Nats-Service-Error" not in answer.headers
    ended = [answer]
    for device, body, headers, expected in [
        (family.a.id, b"", {"Swb-Timeout": "200"}, ("timed_out", "maybe", "504")),
        (family.b.id, b"", {}, ("offline", "never", "409")),
        (applications.tenant, b"", {}, ("unknown_device", "never", "404")),
        (family.a.id, b"{", {}, ("malformed", "never", "400")),
        (family.a.id, b"", {"Swb-Timeout": "soon"}, ("malformed", "never", "400")),
    ]:
        (answer,) = applications.ask(app, (applications.subject(app, device), body, headers or None))
        told = answer.headers
        assert (told["Swb-Outcome"], told["Swb-Seen"], told["Nats-Service-Error-Code"]) == expected, body
        assert told["Nats-Service-Error"] and told["Swb-Call"] and answer.data == b""
        ended += [answer] * (told["Swb-Outcome"] != "malformed")
    oneway = json.dumps({"method": "blink", "oneway": True}).encode()
    (answer,) = applications.ask(app, (own, oneway, None))
    assert (answer.headers["Swb-Outcome"], answer.data) == ("delivered", b"")
    # Listeners are told of these calls, too, each once, and by which way they came.
    ended.append(answer)
    events = [listener.until("call").data for _ in ended]
    listener.close()
    assert {it["callId"]: it["outcome"] for it in events} == {it.headers["Swb-Call"]: it.headers["Swb-Outcome"] for it in ended}
    assert all(it["caller"] == {"app": app.id} for it in events)
    first = ended[0].headers["Swb-Call"]
    with RawHttp(api.port) as http:
        shown = http.ask("GET", f"/v1/calls/{first}?hops=true", Authorization=observer.bearer).json
    assert [it["at"] for it in shown["hops"]] == ["authorizer", "router", "target"]
    assert applications.hardened.violations()[before:] == []


def test_it_is_found_as_services_of_nats_are(applications):
    (app, _) = applications.apps
    ping, info, stats = (json.loads(it.data) for it in applications.ask(app, *((f"$SRV.{verb}", b"", None) for verb in ("PING", "INFO", "STATS.switchboard"))))
    assert {(it["name"], it["id"], it["version"]) for it in (ping, info, stats)} == {("switchboard", ping["id"], ping["version"])}
    assert [it["type"].split(".")[-1] for it in (ping, info, stats)] == ["ping_response", "info_response", "stats_response"]
    (endpoint,) = info["endpoints"]
    assert (endpoint["subject"], endpoint["queue_group"]) == ("swb.app.*.*.call.*", "authorizer")
    assert stats["endpoints"][0]["num_requests"] >= 0 and stats["started"]
    (again,) = applications.ask(app, (f"$SRV.PING.switchboard.{ping['id']}", b"", None))
    assert json.loads(again.data) == ping


def test_none_calls_in_anothers_name(applications, target, tmp_path):
    (thief, other), family = applications.apps, applications.family
    with applications.connect(thief) as stolen:
        for subject in (applications.subject(other, family.a.id), "swb.app", "swb.appcall", "swb.call", "swb.route", "swb.reply.1.1", "_R_.a.b", "anything"):
            assert "Permissions Violation" in (stolen.publish(subject, "") or ""), subject
        for subject, queue in (("swb.>", ""), (applications.subject(other, "*"), "authorizer"), (applications.subject(thief, "*"), "authorizer"), ("_R_.>", "")):
            assert "Permissions Violation" in (stolen.subscribe(subject, queue) or ""), subject
        # What the device answers is published where its caller wanted it: as a call of another it is nobody's.
        stolen.publish(applications.subject(thief, family.a.id), "", applications.subject(other, family.a.id))
        target.next_call().answer('{"method":"stolen"}')
        for wanted in (applications.subject(other, family.a.id), "swb.route", "swb.call", "swb.node.0123456789abcdef", "swb.reply.1.1"):
            stolen.publish("$SRV.PING", "", wanted)
            stolen.publish(applications.subject(thief, family.b.id), "", wanted)
        answer = stolen.ask(applications.subject(thief, family.b.id))
        assert "Swb-Outcome: offline" in answer.headers
    last = applications.connect(other)
    last.publish(applications.subject(other, family.a.id), '{"method":"last"}', "_INBOX.own.1")
    assert json.loads(target.next_call().text)["method"] == "last"
    last.__exit__()

    # Nor does an account import another's calls.
    whole = applications.is_valid(tmp_path, [applications.account(family.a.id)])
    assert whole.returncode == 0, whole.stderr
    forged = applications.is_valid(tmp_path, [applications.account(family.a.id, of=other.id)])
    assert forged.returncode != 0 and "service import" in forged.stderr, forged.stderr


def test_it_ends_with_the_application(applications, target):
    accounts, family = applications.accounts, applications.family
    (_, app) = applications.apps
    accounts.cli("app", "remove", app.id, "--yes").ok()
    own = applications.subject(app, family.a.id)

    def is_denied() -> bool:
        (answer,) = applications.ask(app, (own, b"", {"Swb-Timeout": "100"}))
        return answer.headers["Swb-Outcome"] == "denied"

    until("it is denied", is_denied)
