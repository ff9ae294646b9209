"""Is a browser page a device too? In Chromium: mqtt.js over WebSocket, plain and under TLS, and fetch from another origin."""

import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlencode

import pytest
from harness.authority import Authority
from harness.devices import PahoV5
from harness.devices.device import echo
from harness.processes import Process
from harness.programs import ROOT, existing
from harness.waiting import PATIENCE_S

CLIENTS = ROOT / "tests" / "clients"
FILES = {
    "/page.html": (CLIENTS / "browser" / "page.html", "text/html"),
    "/fetch.html": (CLIENTS / "browser" / "fetch.html", "text/html"),
    "/mqtt.min.js": (CLIENTS / "mqttjs" / "node_modules" / "mqtt" / "dist" / "mqtt.min.js", "text/javascript"),
}

# Without the background networking it looks for nobody but the page; root has no sandbox.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # The test's certificate is nobody's that a browser knows.
    "--ignore-certificate-errors",
]


class Page:
    """The server of the page, which hears what it says."""

    def __init__(self):
        self.said = queue.Queue()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, page="page.html", **query):
        return f"http://127.0.0.1:{self._server.server_port}/{page}?{urlencode(query)}"

    def next(self, what):
        """What it says of this kind; other things that it says meanwhile stay to be read."""
        others = []
        try:
            while True:
                event = self.said.get(timeout=PATIENCE_S)
                assert "error" not in event, event
                if what in event:
                    return event
                others.append(event)
        finally:
            for event in others:
                self.said.put(event)

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def _handler(page):  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                path, kind = FILES.get(self.path.partition("?")[0], (None, None))
                if path is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(existing(path).read_bytes())

            def do_POST(self):
                page.said.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        return Handler


@pytest.fixture
def page():
    page = Page()
    yield page
    page.close()


@pytest.fixture
def browser(tmp_path):
    made = []

    def open_page(url):
        command = ["chromium", *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", url]
        made.append(Process("chromium", command, None))

    yield open_page
    for process in made:
        process.stop()


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_page_calls_and_is_called(new_cluster, device, page, browser, scheme, tmp_path):
    certificate, key = Authority(tmp_path).issue("node")
    cluster = new_cluster(nodes=2, settings={"tls.certificate_file": str(certificate), "tls.key_file": str(key)})
    family = cluster.accounts.family()
    here, there = cluster.nodes
    other = device(PahoV5, family.b).connect(there).become_callable(echo)
    port = {"ws": here.http_port, "wss": here.https_port}[scheme]
    browser(page.url(broker=f"{scheme}://127.0.0.1:{port}/mqtt", token=family.a.token, target=family.b.id))
    page.next("callable")
    answers = {event["answer"]: event["message"] for event in (page.next("answer"), page.next("answer"))}
    assert {it["id"] for it in answers[1]} == {family.b.id, family.c.id}
    assert answers[2] == {"from": "a page"}
    assert other.send_msg(family.a, '"to the page"').text() == '{"page":"to the page"}'
    assert page.next("called")["called"] == {"method": "onMsg", "params": "to the page"}


def test_a_page_of_another_origin_calls_and_is_called_over_http(shared_cluster, family, device, page, browser):
    here, there = shared_cluster.nodes
    other = device(PahoV5, family.b).connect(there).become_callable(echo)
    api = f"http://127.0.0.1:{here.http_port}"
    browser(page.url("fetch.html", api=api, token=family.a.token, target=family.b.id))
    assert page.next("refused")["refused"] == 401, "errors are readable too"
    assert page.next("answer")["answer"] == {"from": "a page"}
    page.next("callable")
    assert other.send_msg(family.a, '"to the page"').text() == '{"page":"to the page"}'
    assert page.next("called") == {"called": "to the page", "taken": 200}
