"""What does a collector of OpenTelemetry traces hear? An OTLP receiver over HTTP, with OpenTelemetry's own messages."""

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from harness.waiting import PATIENCE_S

# The text of every span that any collector of this run heard, for the test that looks for tokens in them.
RECEIVED: list[str] = []


@dataclass(frozen=True)
class Span:
    """One span, ids in hex, none as the empty text."""

    resource: dict[str, str]
    trace: str
    id: str
    parent: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str]
    failed: bool

    @property
    def service(self) -> str:
        return self.resource["service.name"]

    @property
    def outcome(self) -> str:
        return self.attributes["switchboard.outcome"]

    def holds(self, other: "Span") -> bool:
        return self.start_ns <= other.start_ns and other.end_ns <= self.end_ns


class Collector:
    """Listens on `port`, 0 for one that is free, until it is closed."""

    def __init__(self, port: int = 0) -> None:
        self._spans: list[Span] = []
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def spans(self) -> list[Span]:
        """All that came, the earliest first."""
        with self._changed:
            return sorted(self._spans, key=lambda span: span.start_ns)

    def wait_for(self, trace: str, count: int) -> list[Span]:
        """The spans of a trace once there are so many, the earliest first."""
        with self._changed:
            of_trace = lambda: [span for span in self._spans if span.trace == trace]  # noqa: E731
            assert self._changed.wait_for(lambda: len(of_trace()) >= count, PATIENCE_S), of_trace()
            return sorted(of_trace(), key=lambda span: span.start_ns)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _took(self, request: ExportTraceServiceRequest) -> None:
        RECEIVED.append(str(request))
        with self._changed:
            for of_service in request.resource_spans:
                resource = _texts(of_service.resource.attributes)
                for scope in of_service.scope_spans:
                    self._spans += [_span(resource, message) for message in scope.spans]
            self._changed.notify_all()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:  # noqa: N802, as http.server wants it
                body = self.rfile.read(int(self.headers["Content-Length"]))
                well_sent = (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
                if well_sent:
                    collector._took(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200 if well_sent else 400)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def _span(resource: dict[str, str], message: Message) -> Span:
    return Span(
        resource=resource,
        trace=message.trace_id.hex(),
        id=message.span_id.hex(),
        parent=message.parent_span_id.hex(),
        name=message.name,
        kind=Message.SpanKind.Name(message.kind).removeprefix("SPAN_KIND_"),
        start_ns=message.start_time_unix_nano,
        end_ns=message.end_time_unix_nano,
        attributes=_texts(message.attributes),
        failed=message.status.code == Status.STATUS_CODE_ERROR,
    )


def _texts(attributes: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for it in attributes:
        assert isinstance(it, KeyValue) and it.value.HasField("string_value"), it
        assert it.key not in found, f"{it.key} is said twice"
        found[it.key] = it.value.string_value
    return found
