"""How does a device made with mqtt.js do it? One Node.js process holds them all, driven by lines of JSON."""

import atexit
import itertools
import json
import threading
from typing import Any, ClassVar, Self

from harness.accounts import Identity
from harness.cluster import Ingress
from harness.devices.device import Answer, Device
from harness.devices.paho import REQUESTS, RESPONSES
from harness.processes import Process
from harness.programs import ROOT, tool
from harness.waiting import PATIENCE_S

DRIVER = ROOT / "tests" / "clients" / "mqttjs" / "driver.js"


class MqttJs(Device):
    """A device that speaks MQTT 5 with mqtt.js."""

    protocol = "mqtt.js-5"
    # A certificate in PEM that those of servers must be issued with.
    ca: str | None = None
    _serials: ClassVar = itertools.count(1)

    def __init__(self, identity: Identity) -> None:
        super().__init__(identity)
        self._number = next(self._serials)
        self._requests = itertools.count(1)
        self._answers: dict[int, Answer] = {}
        self._driver = _Driver.of_this_run()
        self._driver.listeners[self._number] = self._heard

    def connect(self, node: Ingress) -> Self:
        self.is_connected = True
        self._do("connect", url=self.url(node), ca=self.ca, username=self.identity.token)
        self._do("subscribe", filter=RESPONSES + "+", qos=1)
        return self

    def url(self, node: Ingress) -> str:
        return f"mqtt://127.0.0.1:{node.mqtt_port}"

    def ask(self, request: str) -> Answer:
        serial, answer = next(self._requests), Answer()
        self._answers[serial] = answer
        self._driver.tell(do="publish", device=self._number, topic=f"{REQUESTS}{serial}", payload=request, qos=1)
        return answer

    def close(self) -> None:
        self._do("close")

    def vanish(self) -> None:
        self._do("vanish")

    def _listen(self) -> None:
        self._do("subscribe", filter=REQUESTS + "+", qos=1)

    def _do(self, what: str, **arguments: Any) -> Any:
        return self._driver.do(do=what, device=self._number, **arguments)

    def _heard(self, event: dict[str, Any]) -> None:
        if event["event"] == "ended":
            self.ended.set()
            for answer in list(self._answers.values()):
                answer.never_came("disconnected")
            return
        topic, payload = event["topic"], event["payload"]
        if topic.startswith(RESPONSES):
            self._answers.pop(int(topic.removeprefix(RESPONSES))).came(payload)
        elif topic.startswith(REQUESTS):
            response = RESPONSES + topic.removeprefix(REQUESTS)
            self._called(
                payload,
                lambda body: self._driver.tell(do="publish", device=self._number, topic=response, payload=body, qos=1),
            )


class MqttJsWebSocket(MqttJs):
    """The same over WebSocket."""

    protocol = "mqtt.js-ws"

    def url(self, node: Ingress) -> str:
        return f"ws://127.0.0.1:{node.http_port}/mqtt"


class _Driver:
    """The Node.js process."""

    _of_this_run: "_Driver | None" = None

    @classmethod
    def of_this_run(cls) -> "_Driver":
        if cls._of_this_run is None:
            cls._of_this_run = _Driver()
        return cls._of_this_run

    def __init__(self) -> None:
        self.listeners: dict[int, Any] = {}
        self._results: dict[int, Any] = {}
        self._serials = itertools.count(1)
        self._writing = threading.Lock()
        self._changed = threading.Condition()
        self._process = Process("mqttjs", [tool("node"), DRIVER], None, cwd=DRIVER.parent)
        atexit.register(self._process.stop)
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, **command: Any) -> None:
        with self._writing:
            self._process.write_line(json.dumps(command))

    def do(self, **command: Any) -> Any:
        """Tells, and waits for the result."""
        serial = next(self._serials)
        self.tell(serial=serial, **command)
        with self._changed:
            assert self._changed.wait_for(lambda: serial in self._results, PATIENCE_S), f"mqtt.js did not {command}"
            result = self._results.pop(serial)
        assert "error" not in result, f"{command}: {result['error']}"
        return result.get("result")

    def _listen(self) -> None:
        for line in self._process.lines_of_out():
            event = json.loads(line)
            if "serial" in event:
                with self._changed:
                    self._results[event["serial"]] = event
                    self._changed.notify_all()
            else:
                self.listeners[event["device"]](event)
