"""What does the server make of bytes that no HTTP client would send? A socket, and responses as they come."""

import http.client
import json
import socket
import struct
from dataclasses import dataclass
from typing import Any, Self

from harness.accounts import Identity
from harness.waiting import PATIENCE_S


def rpc(identity: Identity, rest: str = "") -> str:
    """The path of a device's calls."""
    return f"/api/v1/{identity.token}/rpc{rest}"


@dataclass
class Response:
    """One response."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]


class RawHttp:
    """A connection to the HTTP port."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S, source_address=(source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Shared by all responses: what is read ahead of one belongs to the next.
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def reset(self) -> None:
        """Closes so that the other end hears at once that nobody reads any more."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def send(self, request: str | bytes) -> Self:
        """As it is, its line ends made those of HTTP."""
        self.socket.sendall(request.replace("\n", "\r\n").encode() if isinstance(request, str) else request)
        return self

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Response:
        """A well-formed request and its response."""
        data = b"" if body is None else body.encode()
        more = (f"{name.replace('_', '-')}: {it}" for name, it in headers.items())
        lines = [f"{method} {path} HTTP/1.1", "Host: test", *more]
        if body is not None:
            lines.append(f"Content-Length: {len(data)}")
        self.send("\r\n".join([*lines, "", ""]).encode() + data)
        return self.response(method)

    def response(self, method: str = "GET") -> Response:
        """The next response."""
        response = http.client.HTTPResponse(_Kept(self._file), method=method)
        response.begin()
        body = response.read().decode()
        return Response(response.status, {name.lower(): it for name, it in response.getheaders()}, body)

    def expect_closed(self) -> bytes:
        """What still comes before the server closes."""
        try:
            return self._file.read()
        except ConnectionResetError:
            return b""


class _Kept:
    """A file that outlives the response that reads it, in the shape of a socket."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def makefile(self, _mode: str) -> "_Kept":
        return self

    def close(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
