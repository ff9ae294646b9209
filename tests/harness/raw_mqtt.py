"""What exactly goes over an MQTT connection? A socket, and packets byte by byte, right or wrong as the test likes."""

import socket
import struct
from dataclasses import dataclass, field
from typing import Any, Self

from harness.waiting import PATIENCE_S

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 1, 2, 3, 4, 5, 6, 7
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK = 8, 9, 10, 11
PINGREQ, PINGRESP, DISCONNECT = 12, 13, 14

# MQTT 5 §2.2.2.2: the properties that are read and written here, and how.
PROPERTIES = {
    0x02: ("message_expiry", "u32"),
    0x08: ("response_topic", "text"),
    0x09: ("correlation", "bytes"),
    0x11: ("session_expiry", "u32"),
    0x12: ("assigned_client_id", "text"),
    0x13: ("server_keep_alive", "u16"),
    0x15: ("authentication_method", "text"),
    0x16: ("authentication_data", "bytes"),
    0x17: ("request_problem_information", "u8"),
    0x18: ("will_delay", "u32"),
    0x1C: ("server_reference", "text"),
    0x1F: ("reason_string", "text"),
    0x21: ("receive_maximum", "u16"),
    0x22: ("topic_alias_maximum", "u16"),
    0x23: ("topic_alias", "u16"),
    0x24: ("maximum_qos", "u8"),
    0x25: ("retain_available", "u8"),
    0x26: ("user_property", "pair"),
    0x27: ("maximum_packet_size", "u32"),
    0x28: ("wildcard_subscription_available", "u8"),
    0x29: ("subscription_identifier_available", "u8"),
    0x2A: ("shared_subscription_available", "u8"),
}
_IDS = {name: (number, kind) for number, (name, kind) in PROPERTIES.items()}


@dataclass
class Packet:
    """A packet from the server."""

    kind: int
    flags: int = 0
    code: int | None = None
    codes: list[int] = field(default_factory=list)
    packet_id: int | None = None
    topic: str = ""
    payload: bytes = b""
    properties: dict[str, Any] = field(default_factory=dict)
    user: dict[str, str] = field(default_factory=dict)

    @property
    def qos(self) -> int:
        return self.flags >> 1 & 3


class RawMqtt:
    """One connection."""

    def __init__(self, port: int, version: int = 4, source: str = "127.0.0.1") -> None:
        self.version = version
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S, source_address=(source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._inbound = b""
        self._last_packet_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def connect(self, username: str | None, **options: Any) -> Packet:
        """Sends CONNECT, and gives CONNACK."""
        self.send(connect(self.version, username, **options))
        return self.expect(CONNACK)

    def subscribe(self, *filters: str, qos: int = 0) -> Packet:
        self.send_subscribe(*filters, qos=qos)
        return self.expect(SUBACK)

    def send_subscribe(self, *filters: str, qos: int = 0) -> None:
        self.send(packet(SUBSCRIBE, self._id() + self._props() + b"".join(text(f) + bytes([qos]) for f in filters), 2))

    def unsubscribe(self, *filters: str) -> Packet:
        self.send(packet(UNSUBSCRIBE, self._id() + self._props() + b"".join(map(text, filters)), 2))
        return self.expect(UNSUBACK)

    def publish(self, topic: str, payload: bytes | str, qos: int = 0, **properties: Any) -> bytes:
        """Sends a message under the next packet id; gives what was sent."""
        sent = self.message(topic, payload, qos, **properties)
        self.send(sent)
        return sent

    def message(self, topic: str, payload: bytes | str, qos: int = 0, **properties: Any) -> bytes:
        payload = payload.encode() if isinstance(payload, str) else payload
        packet_id = self._id() if qos else b""
        return packet(PUBLISH, text(topic) + packet_id + self._props(**properties) + payload, qos << 1)

    def pubrel(self, packet_id: int) -> None:
        self.send(packet(PUBREL, struct.pack(">H", packet_id), 2))

    def puback(self, packet_id: int) -> None:
        self.send(packet(PUBACK, struct.pack(">H", packet_id)))

    def ping(self) -> None:
        self.send(packet(PINGREQ, b""))
        self.expect(PINGRESP)

    def disconnect(self, reason: int | None = None) -> None:
        self.send(packet(DISCONNECT, b"" if reason is None else bytes([reason])))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def expect(self, kind: int, within_s: float = PATIENCE_S) -> Packet:
        """The next packet, which must be of this kind."""
        packet = self.receive(within_s)
        assert packet is not None, "the connection was closed"
        assert packet.kind == kind, packet
        return packet

    def expect_closed(self, within_s: float = PATIENCE_S) -> None:
        """The server closes without another word."""
        assert self.receive(within_s) is None

    def expect_disconnect(self, code: int, within_s: float = PATIENCE_S) -> Packet:
        """The server says DISCONNECT (MQTT 5), and closes."""
        packet = self.expect(DISCONNECT, within_s)
        assert packet.code == code, packet
        self.expect_closed()
        return packet

    def receive(self, within_s: float = PATIENCE_S) -> Packet | None:
        """The next packet; None when the connection is closed."""
        self.socket.settimeout(within_s)
        header = self._take(1)
        if header is None:
            return None
        length, shift = 0, 0
        while True:
            byte = self._take(1)
            assert byte is not None
            length |= (byte[0] & 0x7F) << shift
            shift += 7
            if not byte[0] & 0x80:
                break
        body = self._take(length)
        assert body is not None
        return self._parsed(header[0] >> 4, header[0] & 0x0F, body)

    def _take(self, count: int) -> bytes | None:
        while len(self._inbound) < count:
            try:
                chunk = self.socket.recv(65536)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                return None
            self._inbound += chunk
        taken, self._inbound = self._inbound[:count], self._inbound[count:]
        return taken

    def _id(self) -> bytes:
        self._last_packet_id += 1
        return struct.pack(">H", self._last_packet_id)

    def _props(self, **values: Any) -> bytes:
        return properties(**values) if self.version == 5 else b""

    def _parsed(self, kind: int, flags: int, body: bytes) -> Packet:
        it, at = Packet(kind, flags), 0
        v5 = self.version == 5
        if kind == CONNACK:
            it.code, at = body[1], 2
            if v5:
                it.properties, at = _read_properties(body, at)
        elif kind == PUBLISH:
            it.topic, at = _read_text(body, at)
            if it.qos:
                (it.packet_id,), at = struct.unpack_from(">H", body, at), at + 2
            if v5:
                it.properties, at = _read_properties(body, at)
            it.payload = body[at:]
        elif kind in (PUBACK, PUBREC, PUBREL, PUBCOMP):
            (it.packet_id,) = struct.unpack_from(">H", body)
            it.code = body[2] if len(body) > 2 else 0
            if len(body) > 3:
                it.properties, at = _read_properties(body, 3)
        elif kind in (SUBACK, UNSUBACK):
            (it.packet_id,), at = struct.unpack_from(">H", body), 2
            if v5:
                it.properties, at = _read_properties(body, at)
            it.codes = list(body[at:])
        elif kind == DISCONNECT:
            it.code = body[0] if body else 0
            if len(body) > 1:
                it.properties, at = _read_properties(body, 1)
        it.user = dict(it.properties.get("user_property", []))
        return it


def connect(
    version: int,
    username: str | None,
    *,
    client_id: str = "",
    keep_alive_s: int = 60,
    password: str | None = None,
    clean: bool = True,
    flags: int = 0,
    name: str = "MQTT",
    will: tuple[str, bytes | str] | None = None,
    will_qos: int = 0,
    will_retain: bool = False,
    will_properties: dict[str, Any] | None = None,
    **values: Any,
) -> bytes:
    """A CONNECT; `flags` are set on top of those that its fields need."""
    flags |= (0x80 if username is not None else 0) | (0x40 if password is not None else 0) | (0x02 if clean else 0)
    flags |= (0x04 | will_qos << 3 | will_retain << 5) if will else 0
    body = text(name) + bytes([version, flags]) + struct.pack(">H", keep_alive_s)
    if version == 5:
        body += properties(**values)
    body += text(client_id)
    if will:
        topic, payload = will
        payload = payload.encode() if isinstance(payload, str) else payload
        body += properties(**will_properties or {}) if version == 5 else b""
        body += text(topic) + struct.pack(">H", len(payload)) + payload
    if username is not None:
        body += text(username)
    if password is not None:
        body += text(password)
    return packet(CONNECT, body)


def again(sent: bytes) -> bytes:
    """The same PUBLISH, sent again as the standard has it: DUP is set."""
    return bytes([sent[0] | 0x08]) + sent[1:]


def id_of(sent: bytes) -> int:
    """The packet id of a PUBLISH at QoS 1 or 2."""
    at = next(index for index in range(1, 5) if not sent[index] & 0x80) + 1
    return int.from_bytes(sent[at + 2 + int.from_bytes(sent[at : at + 2], "big") :][:2], "big")


def packet(kind: int, body: bytes, flags: int = 0) -> bytes:
    return bytes([kind << 4 | flags]) + _length(len(body)) + body


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">H", len(data)) + data


def properties(**values: Any) -> bytes:
    """Properties; one that comes more than once is a list."""
    data = b""
    for name, value in ((name, it) for name, many in values.items() for it in (many if isinstance(many, list) else [many])):
        number, kind = _IDS[name]
        data += bytes([number])
        match kind:
            case "u8":
                data += bytes([value])
            case "u16":
                data += struct.pack(">H", value)
            case "u32":
                data += struct.pack(">I", value)
            case "text":
                data += text(value)
            case "bytes":
                data += struct.pack(">H", len(value)) + value
            case "pair":
                data += text(value[0]) + text(value[1])
    return _length(len(data)) + data


def _length(value: int) -> bytes:
    data = b""
    while True:
        value, low = value >> 7, value & 0x7F
        data += bytes([low | (0x80 if value else 0)])
        if not value:
            return data


def _read_text(body: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from(">H", body, at)
    return body[at + 2 : at + 2 + length].decode(), at + 2 + length


def _read_properties(body: bytes, at: int) -> tuple[dict[str, Any], int]:
    length, shift = 0, 0
    while True:
        byte = body[at]
        at += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    end, found = at + length, {}
    while at < end:
        name, kind = PROPERTIES[body[at]]
        at += 1
        match kind:
            case "u8":
                value, at = body[at], at + 1
            case "u16":
                (value,), at = struct.unpack_from(">H", body, at), at + 2
            case "u32":
                (value,), at = struct.unpack_from(">I", body, at), at + 4
            case "text":
                value, at = _read_text(body, at)
            case "bytes":
                (size,) = struct.unpack_from(">H", body, at)
                value, at = body[at + 2 : at + 2 + size], at + 2 + size
            case "pair":
                key, at = _read_text(body, at)
                value, at = _read_text(body, at)
                value = [*found.get(name, []), (key, value)]
        found[name] = value
    return found, end
