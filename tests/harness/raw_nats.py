"""What does NATS allow a user? Its own protocol, word by word: a client library would hide which line was refused."""

import json
import socket
from typing import Self

from harness.waiting import PATIENCE_S


class RawNats:
    """One connection of one user."""

    def __init__(self, url: str, user: str, password: str) -> None:
        host, port = url.removeprefix("nats://").rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        self._lines = self._socket.makefile("rb")
        assert self._lines.readline().startswith(b"INFO ")
        options = {"user": user, "pass": password, "verbose": False, "protocol": 1, "headers": True}
        self.refused = self._say(f"CONNECT {json.dumps(options)}\r\n")
        self._subscriptions = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def publish(self, subject: str, body: str = "", reply_to: str = "") -> str | None:
        """Why it was refused; None: it was taken."""
        return self._say(f"PUB {subject} {reply_to} {len(body)}\r\n{body}\r\n")

    def subscribe(self, subject: str, queue: str = "") -> str | None:
        """Why it was refused; None: it was granted."""
        self._subscriptions += 1
        return self._say(f"SUB {subject} {queue} {self._subscriptions}\r\n")

    def _say(self, line: str) -> str | None:
        self._socket.sendall(line.encode() + b"PING\r\n")
        refused = None
        while (heard := self._lines.readline()) != b"PONG\r\n":
            if not heard:
                assert refused, "NATS closed the connection without a reason"
                return refused
            if heard.startswith(b"-ERR"):
                refused = heard.decode().strip()
            elif heard.startswith(b"MSG"):
                self._lines.readline()
        return refused
