"""Does a page in a browser hear events? Chromium, a page of a few lines, and a proxy in front of page and API."""

import http.client
import json
import queue
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from harness.apps import add_app
from harness.devices import PahoV5
from harness.waiting import PATIENCE_S

# As services/api/README.md has it: the key in a header, the stream read as it comes.
PAGE = """<script type="module">
const response = await fetch("/v1/events?kinds=presence", {headers: {Authorization: "KEY"}});
const lines = response.body.pipeThrough(new TextDecoderStream()).getReader();
for (let text = "", read; !(read = await lines.read()).done;) {
    const events = (text += read.value).split("\\n\\n");
    text = events.pop();
    for (const event of events) {
        const data = event.split("\\n").find(line => line.startsWith("data: "));
        if (data) await fetch("/told", {method: "POST", body: data.slice(6)});
    }
}
</script>"""


class Proxy(BaseHTTPRequestHandler):
    """Page and API as one origin, as a proxy in front of both makes them."""

    page, api, told = "", 0, queue.Queue()

    def do_GET(self) -> None:
        self.send_response(200)
        if not self.path.startswith("/v1/"):
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(self.page.encode())
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.api, timeout=PATIENCE_S)
        upstream.request("GET", self.path, headers={"Authorization": self.headers["Authorization"]})
        response = upstream.getresponse()
        self.send_header("Content-Type", response.headers["content-type"])
        self.end_headers()
        while some := response.read1():
            self.wfile.write(some)

    def do_POST(self) -> None:
        self.told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_page_hears_who_comes(tmp_path, shared_cluster, family, node, device):
    app = add_app(shared_cluster.accounts, "--role", "observer", "--customer", family.customer)
    Proxy.page, Proxy.api = PAGE.replace("KEY", app.bearer), shared_cluster.apis[0].port
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--remote-debugging-port=0"]
    browser = subprocess.Popen(["chromium", *flags, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert len(Proxy.told.get(timeout=60)["devices"]) == 3
        device(PahoV5, family.a).connect(node).become_callable()
        event = Proxy.told.get(timeout=PATIENCE_S)
        assert (event["id"], event["online"]) == (family.a.id, True)
    finally:
        browser.kill()
        browser.wait()
        server.shutdown()
