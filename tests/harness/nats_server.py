"""How is a NATS server started for a test, and started again with its memory lost?"""

import json
from pathlib import Path

from harness.processes import Process
from harness.programs import tool
from harness.waiting import until


class NatsServer:
    """nats-server with JetStream on a port of its own choice, which it keeps when it is started again."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self._folder, self._logs = folder, logs
        self._port: int | None = None
        self.start()

    @property
    def port(self) -> int:
        assert self._port is not None
        return self._port

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, on the files of before if it ran before: what was in memory is gone."""
        ports = self._folder / "ports"
        ports.mkdir(parents=True, exist_ok=True)
        port = str(self._port or -1)
        command = [tool("nats-server"), "--addr", "127.0.0.1", "--port", port, "--ports_file_dir", ports]
        store = ["--jetstream", "--store_dir", self._folder / "store"]
        self.process = Process("nats-server", [*command, *store], self._logs)
        self.process.wait_for_line("Server is ready", lambda line: "Server is ready" in line)
        if self._port is None:
            file = ports / f"nats-server_{self.process.pid}.ports"
            listening = until("nats-server writes its port", lambda: _parsed(file))
            self._port = int(listening["nats"][0].rsplit(":", 1)[1])

    def restart(self) -> None:
        self.process.kill()
        self.start()

    def stop(self) -> None:
        self.process.stop()


def _parsed(file: Path) -> dict[str, list[str]] | None:
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
