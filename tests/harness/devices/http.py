"""How does a device do it that can only send HTTP requests? With Python's own client, as simply as firmware would."""

import contextlib
import http.client
import json
import queue
import re
import socket
import threading
from collections.abc import Callable
from typing import ClassVar, Self
from urllib.parse import quote

from harness.accounts import Identity
from harness.cluster import Ingress
from harness.devices.device import Answer, Device
from harness.waiting import PATIENCE_S

# Longer than any poll: what takes longer hangs.
SOCKET_TIMEOUT_S = 90


class HttpDevice(Device):
    """A device that polls. Each call and each answer goes over a connection that is kept and used again."""

    protocol: ClassVar[str] = "http"
    # Nobody can tell that a device has gone which is not connected anyway.
    can_be_lost: ClassVar[bool] = False

    def __init__(self, identity: Identity, poll_timeout_ms: int = 20_000) -> None:
        super().__init__(identity)
        self.poll_timeout_ms = poll_timeout_ms
        # The status that ended the polling, if the server did.
        self.poll_status: int | None = None
        self._polls = True
        self._idle: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()
        self._polling: http.client.HTTPConnection | None = None
        self._host, self._port = "127.0.0.1", 0

    def connect(self, node: Ingress) -> Self:
        self._host, self._port = node.host, node.http_port
        # Nothing lasts between requests, but from the first one on the node knows who this is.
        status, text = self.request("POST", "rpc", '{"method":"getTime"}')
        assert status == 200, (status, text)
        self.is_connected = True
        return self

    def ask(self, request: str) -> Answer:
        answer = Answer()

        def perform() -> None:
            try:
                _, text = self.request("POST", "rpc", request)
                answer.came(text)
            except (OSError, http.client.HTTPException) as error:
                answer.never_came(f"no response: {error!r}")

        threading.Thread(target=perform, daemon=True).start()
        return answer

    def request(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        """Status and body of one request below the device's token."""
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._connection()
        try:
            result = self._perform(connection, method, path, body)
        except BaseException:
            connection.close()
            raise
        self._idle.put(connection)
        return result

    def close(self) -> None:
        self.ended.set()
        polling = self._polling
        # Shut down, not closed: the thread that polls owns it.
        if polling and polling.sock:
            with contextlib.suppress(OSError):
                polling.sock.shutdown(socket.SHUT_RDWR)
        while not self._idle.empty():
            self._idle.get_nowait().close()

    def poll_no_more(self) -> None:
        """The poll that waits is the last one."""
        self._polls = False

    def vanish(self) -> None:
        self.close()

    def _listen(self) -> None:
        # The end of a poll says that the device is callable.
        status, text = self.request("GET", "rpc?timeout=1")
        assert status in (200, 408), (status, text)
        if status == 200:
            self._take(text)
        threading.Thread(target=self._poll, daemon=True).start()

    def _poll(self) -> None:
        self._polling = self._connection()
        try:
            while self._polls and not self.ended.is_set():
                status, text = self._perform(self._polling, "GET", f"rpc?timeout={self.poll_timeout_ms}")
                if status == 200:
                    self._take(text)
                elif status != 408:
                    self.poll_status = status
                    break
        except (OSError, http.client.HTTPException) as error:
            if not self.ended.is_set():
                print(f"{self.identity.name} stopped polling: {error!r}")
        finally:
            self._polling.close()
            self.ended.set()

    def _take(self, text: str) -> None:
        number = json.loads(text)["id"]
        # The number is what HTTP adds; the rest is the same for every protocol.
        self._called(re.sub(rf'^\{{"id":{number},', "{", text), self._answerer(number))

    def _answerer(self, number: int) -> Callable[[str], None]:
        def answer(body: str) -> None:
            status, text = self.request("POST", f"rpc/{number}", body)
            # 404: too late, as some tests want it.
            assert status in (200, 404), (status, text)

        return answer

    def _perform(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None
    ) -> tuple[int, str]:
        data = None if body is None else body.encode()
        connection.request(method, f"/api/v1/{quote(self.identity.token, safe='')}/{path}", data)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def _connection(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=max(SOCKET_TIMEOUT_S, PATIENCE_S))
        connection.connect()
        assert connection.sock
        # Head and body are two writes: without this the second waits for the first one's acknowledgement.
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
