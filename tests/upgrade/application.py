"""What does an application see? It calls devices all the time, over whichever API is there."""

import http.client
import json
import random
import threading
import time
from collections import Counter

from fleet.fleet import Fleet
from harness.apps import App
from harness.cluster import Api

CALLS_PER_SECOND = 20
TIMEOUT_S = 15
# Its calls' numbers, beside which devices count theirs from 1.
FIRST_NUMBER = 1_000_000_000
OUTCOME = "switchboard-outcome"


class Application:
    """A thread that calls devices of a fleet, one call after the other."""

    def __init__(self, fleet: Fleet, app: App) -> None:
        self.outcomes: Counter[str] = Counter()
        # The APIs that it may go to, as a Service has it.
        self.apis: list[Api] = []
        self._fleet, self._app = fleet, app
        self._random = random.Random(1)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        number, next_at = FIRST_NUMBER, time.monotonic()
        while not self._ended.wait(max(next_at - time.monotonic(), 0)):
            next_at = time.monotonic() + 1 / CALLS_PER_SECOND
            number += 1
            self.outcomes[self._call(number)] += 1

    def _call(self, number: int) -> str:
        api, target = self._random.choice(self.apis), self._random.choice(self._fleet.devices)
        connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=TIMEOUT_S)
        headers = {"Authorization": self._app.bearer, "Content-Type": "application/json"}
        try:
            path = f"/v1/devices/{target.identity.id}/calls"
            connection.request("POST", path, json.dumps({"params": number, "timeout": 5_000}), headers)
            response = connection.getresponse()
            text = response.read().decode()
        except OSError as error:
            return type(error).__name__
        finally:
            connection.close()
        if response.status == 200:
            return "answered" if text == str(number) else "another's answer"
        return response.getheader(OUTCOME) or f"status {response.status}"
