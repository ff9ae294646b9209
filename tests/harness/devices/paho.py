"""How does a device made with paho-mqtt do it? MQTT 3.1.1 and 5."""

import itertools
import socket
import threading
from typing import Any, ClassVar, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from harness.accounts import Identity
from harness.cluster import Ingress
from harness.devices.device import Answer, Device
from harness.waiting import PATIENCE_S

REQUESTS = "v1/devices/me/rpc/request/"
RESPONSES = "v1/devices/me/rpc/response/"


class Paho(Device):
    """A device that speaks MQTT."""

    version: ClassVar[MQTTProtocolVersion]

    def __init__(self, identity: Identity, qos: int = 1) -> None:
        super().__init__(identity)
        self.qos = qos
        # Why the server refused or ended the connection, as it said.
        self.connect_reason: Any = None
        self.disconnect_reason: Any = None
        self._serials = itertools.count(1)
        self._answers: dict[int, Answer] = {}
        self._acks: dict[int, Any] = {}
        self._changed = threading.Condition()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=self.version, reconnect_on_failure=False)
        self.client.username_pw_set(identity.token)
        # Two small packets one behind the other would wait 40 ms for each other.
        self.client.on_socket_open = lambda _client, _user, it: it.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_publish = self._on_publish
        self.client.on_message = self._on_message

    def connect(self, node: Ingress) -> Self:
        self.connect_only(node)
        assert self.subscribe(RESPONSES + "+") == self.qos
        return self

    def connect_only(self, node: Ingress) -> Self:
        """Connects without a subscription."""
        self.is_connected = True
        self.client.connect(node.host, node.mqtt_port, keepalive=60)
        self.client.loop_start()
        self._wait(lambda: self.connect_reason is not None, "CONNACK")
        assert not self.connect_reason.is_failure, self.connect_reason
        return self

    def ask(self, request: str) -> Answer:
        serial, answer = next(self._serials), Answer()
        self._answers[serial] = answer
        if self.ended.is_set():
            answer.never_came("not connected")
        answer.mid = self.client.publish(f"{REQUESTS}{serial}", request, self.qos).mid
        return answer

    def was_taken(self, answer: Answer) -> bool:
        """Whether the request was acknowledged (at QoS 1)."""
        return answer.mid in self._acks

    def close(self) -> None:
        self.client.disconnect()
        self._wait(self.ended.is_set, "end")
        self.client.loop_stop()

    def vanish(self) -> None:
        connection = self.client.socket()
        if connection:
            connection.shutdown(socket.SHUT_RDWR)
        self._wait(self.ended.is_set, "end")
        self.client.loop_stop()

    def publish(self, topic: str, payload: str) -> Any:
        """Publishes at QoS 1, and waits for the PUBACK and its reason."""
        mid = self.client.publish(topic, payload, 1).mid
        self._wait(lambda: mid in self._acks, "PUBACK")
        return self._acks[mid]

    def subscribe(self, topic_filter: str) -> int:
        """The reason code of the SUBACK."""
        _, mid = self.client.subscribe(topic_filter, self.qos)
        assert mid is not None
        self._wait(lambda: mid in self._acks, "SUBACK")
        return self._acks[mid].value

    def _listen(self) -> None:
        assert self.subscribe(REQUESTS + "+") == self.qos

    def _wait(self, done: Any, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: done() or self.ended.is_set(), PATIENCE_S):
                raise AssertionError(f"{what} did not come")
            assert done(), f"disconnected before {what}: {self.disconnect_reason}"

    def _on_connect(self, _client: Any, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        with self._changed:
            self.connect_reason = reason
            self._changed.notify_all()

    def _on_disconnect(self, _client: Any, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        with self._changed:
            self.disconnect_reason = reason
            self.ended.set()
            self._changed.notify_all()
        for answer in list(self._answers.values()):
            answer.never_came(f"disconnected: {reason}")

    def _on_subscribe(self, _client: Any, _user: Any, mid: int, reasons: Any, _properties: Any) -> None:
        with self._changed:
            self._acks[mid] = reasons[0]
            self._changed.notify_all()

    def _on_publish(self, _client: Any, _user: Any, mid: int, reason: Any, _properties: Any) -> None:
        with self._changed:
            self._acks[mid] = reason
            self._changed.notify_all()

    def _on_message(self, _client: Any, _user: Any, message: mqtt.MQTTMessage) -> None:
        text = message.payload.decode()
        if message.topic.startswith(RESPONSES):
            self._answers.pop(int(message.topic.removeprefix(RESPONSES))).came(text)
        elif message.topic.startswith(REQUESTS):
            number = message.topic.removeprefix(REQUESTS)
            self._called(text, lambda body: self._answer(number, body))

    def _answer(self, number: str, body: str) -> None:
        self.client.publish(RESPONSES + number, body, self.qos)


class PahoV311(Paho):
    """paho-mqtt, MQTT 3.1.1."""

    protocol = "paho-3.1.1"
    version = MQTTProtocolVersion.MQTTv311


class PahoV5(Paho):
    """paho-mqtt, MQTT 5."""

    protocol = "paho-5"
    version = MQTTProtocolVersion.MQTTv5
