"""How are `switchboard up` and `switchboard cluster` started for a test?"""

import json
import socket
from pathlib import Path
from typing import Any

from harness.admin import Admin
from harness.ports import ANY, HOST, any_ports
from harness.processes import Process
from harness.programs import built, tool
from harness.waiting import PATIENCE_S, until

FREE_PORTS = ["--mqtt", ANY, "--admin", ANY, "--nats-port", "0"]


class Up:
    """The whole system in one process, with a nats-server of its own."""

    command = "up"
    host = HOST

    def __init__(self, folder: Path, *flags: str, ports: list[str] = FREE_PORTS, env: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._addresses = folder / "addresses.json"
        command = [built("switchboard"), self.command, "--addresses", self._addresses, "--nats-server", tool("nats-server")]
        # Weaker than the flags with names of their own.
        settings = [f"--set={setting}={value}" for setting, value in any_ports().items()]
        self.process = Process(self.command, [*command, *settings, *ports, *flags], folder / "logs", env=env)

    def wait_ready(self) -> "Up":
        self.process.wait_for_line("Switchboard is ready", lambda line: "Switchboard is ready" in line, stream="out")
        self.addresses: dict[str, Any] = json.loads(self._addresses.read_text())
        return self

    @property
    def nats_url(self) -> str:
        return self.addresses["nats"]

    @property
    def mqtt_port(self) -> int:
        return int(self.addresses["services"][0]["mqtt"].rsplit(":", 1)[1])

    @property
    def http_port(self) -> int:
        return int(self.addresses["services"][0]["http"].rsplit(":", 1)[1])

    @property
    def coap_port(self) -> int:
        return int(self.addresses["services"][0]["coap"].rsplit(":", 1)[1])

    @property
    def api_port(self) -> int:
        return int(self.addresses["services"][0]["api"].rsplit(":", 1)[1])

    @property
    def admin(self) -> Admin:
        return Admin(self.addresses["services"][0]["admin"])

    def stop(self) -> None:
        self.process.stop()

    def wait_nats_gone(self) -> None:
        """Its nats-server listens no more."""
        port = int(self.nats_url.rsplit(":", 1)[1])
        until("its nats-server is gone", lambda: not listens(port), PATIENCE_S)


class UpCluster(Up):
    """Two processes of each service, with a nats-server of their own."""

    command = "cluster"

    @property
    def nodes(self) -> list["UpNode"]:
        return [UpNode(it) for it in self.addresses["services"] if "mqtt" in it]

    def pids_of(self, program: str) -> list[int]:
        """Of its children that run this program."""
        named = [pid for pid in descendants(self.process.pid) if Path(_command(pid)[0]).name == program]
        return sorted(named)


class UpNode:
    """One node of it."""

    host = HOST

    def __init__(self, addresses: dict[str, Any]) -> None:
        self.mqtt_port = int(addresses["mqtt"].rsplit(":", 1)[1])


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def descendants(pid: int) -> list[int]:
    """Its children, and theirs."""
    children = [int(it) for task in Path(f"/proc/{pid}/task").glob("*/children") for it in _read(task).split()]
    return [it for child in children for it in [child, *descendants(child)]]


def _command(pid: int) -> list[str]:
    return _read(Path(f"/proc/{pid}/cmdline")).split("\0")


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
