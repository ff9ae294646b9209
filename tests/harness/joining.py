"""What does NATS ask of identity when nodes come? The same, from one who asks for no node, over and over."""

import base64
import json
import threading
from typing import Self

from harness.raw_nats import RawNats

ASKED = {"nats": {"server_id": {"id": "S"}, "user_nkey": "U", "client_info": {"kind": "Client"}, "connect_opts": {"user": "nobody"}}}
QUESTION = f"e30.{base64.urlsafe_b64encode(json.dumps(ASKED).encode()).decode().rstrip('=')}.c2ln"
PAUSE_S = 0.2


class Joining:
    """Until the end of the `with`. NATS itself is one that asks nobody."""

    def __init__(self, url: str) -> None:
        self._connection = RawNats(url, "", "")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Self:
        self._connection.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._connection.__exit__()

    def _ask(self) -> None:
        while not self._stopping.wait(PAUSE_S):
            self._connection.publish("$SYS.REQ.USER.AUTH", QUESTION, "$SYS._INBOX.asker")
