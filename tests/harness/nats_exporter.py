"""What does prometheus-nats-exporter say of a NATS server? Its names and labels, with `-prefix=nats -varz -jsz=all`, and numbers that stand still."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SERVER = 'server_id="nats-0"'
STREAM = (
    'server_id="nats-0",server_name="nats-0",cluster="nats",domain="",meta_leader="nats-0",is_meta_leader="true",account="CLAIMS",'
    'account_id="CLAIMS",stream_name="KV_swb_claims",stream_leader="nats-0",is_stream_leader="true"'
)
OF_SERVER = ("connections", "in_msgs", "out_msgs", "cpu", "mem", "slow_consumers", "subscriptions")
OF_STREAM = ("total_messages", "total_bytes", "first_seq", "last_seq", "consumer_count")
SAID = "".join(
    f"# TYPE {name} gauge\n{name}{{{labels}}} 7\n"
    for name, labels in [*((f"nats_varz_{it}", SERVER) for it in OF_SERVER), *((f"nats_stream_{it}", STREAM) for it in OF_STREAM)]
)


class NatsExporter:
    """Listens on a free port until it is closed."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Said)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Said(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(SAID.encode())

    def log_message(self, *_: object) -> None:
        pass
