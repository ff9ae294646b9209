"""What does NATS allow a user? Its own protocol, word by word: a client library would hide which line was refused."""

import json
import secrets
import socket
import time
from dataclasses import dataclass
from typing import Self

from harness.waiting import PATIENCE_S


# On a busy machine NATS was seen to lose the first answer that comes through an account's import.
ASK_AGAIN_S = 5


@dataclass(frozen=True)
class Heard:
    """A message that was delivered; its body has a character for each byte."""

    subject: str
    reply_to: str
    headers: str
    body: str


class RawNats:
    """One connection of one user."""

    def __init__(self, url: str, user: str, password: str, token: str = "") -> None:
        host, port = url.removeprefix("nats://").rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        self._lines = self._socket.makefile("rb")
        assert self._lines.readline().startswith(b"INFO ")
        self._subscriptions = 0
        self.heard: list[Heard] = []
        # Where it has answers come: any, but who may hear his own alone.
        # No connection before had it: NATS forgets who asked, once nobody listens to where the answer is to go.
        self.inbox = f"swb.reply.{secrets.token_hex(8)}"
        options = {"user": user, "pass": password, "verbose": False, "pedantic": False, "protocol": 1, "headers": True, "no_responders": True}
        if token:
            options["auth_token"] = token
        self.refused = self._say(f"CONNECT {json.dumps(options)}\r\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def publish(self, subject: str, body: str = "", reply_to: str = "", headers: dict[str, str] | None = None) -> str | None:
        """Why it was refused; None: it was taken. The body has a character for each byte."""
        if headers is None:
            return self._say(f"PUB {subject} {reply_to} {len(body)}\r\n{body}\r\n")
        head = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        return self._say(f"HPUB {subject} {reply_to} {len(head)} {len(head) + len(body)}\r\n{head}{body}\r\n")

    def subscribe(self, subject: str, queue: str = "") -> str | None:
        """Why it was refused; None: it was granted."""
        self._subscriptions += 1
        return self._say(f"SUB {subject} {queue} {self._subscriptions}\r\n")

    def listen(self) -> list[Heard]:
        """What was delivered up to now."""
        self._say("")
        return self.heard

    def ask(self, subject: str, body: str = "", headers: dict[str, str] | None = None) -> Heard:
        """Asks, and waits for the answer; NATS' own, where nobody is there."""
        inbox = f"{self.inbox}.{self._subscriptions + 1}"
        self.subscribe(inbox)
        refused = self.publish(subject, body, inbox, headers)
        assert refused is None, refused
        began = asked = time.monotonic()
        while not (answers := [it for it in self.listen() if it.subject == inbox]):
            now = time.monotonic()
            assert now < began + PATIENCE_S, f"nobody answers {subject}"
            if now > asked + ASK_AGAIN_S:
                self.publish(subject, body, inbox, headers)
                asked = now
            time.sleep(0.001)
        return answers[0]

    def _say(self, line: str) -> str | None:
        self._socket.sendall(line.encode("latin-1") + b"PING\r\n")
        refused = None
        while (line_heard := self._read()) != b"PONG\r\n":
            if not line_heard:
                assert refused, "NATS closed the connection without a reason"
                return refused
            if line_heard.startswith(b"-ERR"):
                refused = line_heard.decode().strip()
        return refused

    def _read(self) -> bytes:
        line = self._lines.readline()
        words = line.decode().split()
        if words and words[0] in ("MSG", "HMSG"):
            sizes = 2 if words[0] == "HMSG" else 1
            whole = self._lines.read(int(words[-1]) + 2)[:-2]
            head = int(words[-2]) if sizes == 2 else 0
            reply_to = words[3] if len(words) == 4 + sizes else ""
            self.heard.append(Heard(words[1], reply_to, whole[:head].decode(), whole[head:].decode("latin-1")))
        return line
