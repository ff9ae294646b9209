"""What does a listener to server-sent events hear? A connection that is read event by event."""

import http.client
import json
from dataclasses import dataclass
from typing import Any, Self

from harness.waiting import PATIENCE_S


@dataclass
class Event:
    """One event: its kind, its id if it has one, and its data."""

    kind: str
    id: str | None
    data: Any


class Listener:
    """Listens until it is closed."""

    def __init__(self, port: int, path: str, headers: dict[str, str]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        self._connection.request("GET", path, headers=headers)
        self.response = self._connection.getresponse()
        self.last_id: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()
        self.response.close()

    def next(self) -> Event | None:
        """The next event; none when the stream has ended. Heartbeats are passed over."""
        fields: dict[str, str] = {}
        while line := self.response.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name and line[0] != ":":
                fields[name] = value
            elif "event" in fields:
                self.last_id = fields.get("id", self.last_id)
                return Event(fields["event"], fields.get("id"), json.loads(fields["data"]))
        return None

    def until(self, kind: str, **data: object) -> Event:
        """The first event of that kind with this data; what comes before it is passed over."""
        while event := self.next():
            if event.kind == kind and all(event.data.get(name) == value for name, value in data.items()):
                return event
        raise AssertionError(f"the stream ended without {kind} {data}")
