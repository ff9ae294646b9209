"""How is a NATS server started for a test, and started again with its memory lost?"""

import json
import urllib.request
from pathlib import Path

from harness.places import Place, Places, here
from harness.ports import free_ports
from harness.processes import Process
from harness.programs import tool
from harness.waiting import until


class NatsServer:
    """nats-server with JetStream on a port of its own choice, which it keeps when it is started again."""

    def __init__(
        self,
        folder: Path,
        logs: Path,
        *flags: str,
        name: str = "nats-server",
        env: dict[str, str] | None = None,
        place: Place | None = None,
    ) -> None:
        self._folder, self._logs, self._flags, self.name, self._env = folder, logs, flags, name, env
        self._place = place or Place()
        self._port: int | None = None
        self._monitoring = ""
        self.start()

    @property
    def port(self) -> int:
        assert self._port is not None
        return self._port

    @property
    def url(self) -> str:
        return f"nats://{self._place.host}:{self.port}"

    @property
    def monitoring(self) -> str:
        """Where it tells how it is, `http://…`."""
        return self._monitoring

    def start(self) -> None:
        """Starts it, on the files of before if it ran before: what was in memory is gone."""
        ports = self._folder / "ports"
        ports.mkdir(parents=True, exist_ok=True)
        port = str(self._port or -1)
        command = [*self._place.enter, tool("nats-server"), "--addr", self._place.host, "--port", port, "--ports_file_dir", ports, "-m", "-1"]
        store = ["--jetstream", "--store_dir", self._folder / "store"]
        self.process = Process(self.name, [*command, *store, *self._flags], self._logs, env=self._env)
        self.process.wait_for_line("Server is ready", lambda line: "Server is ready" in line)
        file = ports / f"nats-server_{self.process.pid}.ports"
        listening = until("nats-server writes its ports", lambda: _parsed(file))
        self._port = int(listening["nats"][0].rsplit(":", 1)[1])
        self._monitoring = listening["monitoring"][0]

    def restart(self) -> None:
        self.process.kill()
        self.start()

    def is_whole(self) -> bool:
        """Whether its copies of the streams are what the others' are."""
        try:
            with urllib.request.urlopen(self._monitoring + "/healthz", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def leads(self) -> int:
        """How many streams look to it."""
        with urllib.request.urlopen(self._monitoring + "/jsz?accounts=true&streams=true", timeout=5) as answer:
            accounts = json.load(answer).get("account_details", [])
        streams = [stream for account in accounts for stream in account.get("stream_detail", [])]
        return sum(stream.get("cluster", {}).get("leader") == self.name for stream in streams)

    def messages(self) -> int:
        """How many messages it has been sent so far."""
        with urllib.request.urlopen(self._monitoring + "/varz", timeout=5) as answer:
            return json.load(answer)["in_msgs"]

    def stop(self) -> None:
        self.process.stop()


class NatsCluster:
    """Three servers that keep three copies of everything."""

    def __init__(
        self, folder: Path, logs: Path, *flags: str, env: dict[str, str] | None = None, places: Places = here
    ) -> None:
        listening = [(places(f"nats-{number}"), port) for number, port in enumerate(free_ports(3), 1)]
        addresses = [f"nats://{place.host}:{port}" for place, port in listening]
        self.servers: list[NatsServer] = []
        for number, ((place, _), address) in enumerate(zip(listening, addresses, strict=True), 1):
            name = f"nats-{number}"
            member = ("--name", name, "--cluster_name", "tests", "--cluster", address, "--routes", ",".join(addresses))
            self.servers.append(NatsServer(folder / name, logs, *member, *flags, name=name, env=env, place=place))
        self.wait_whole()

    @property
    def url(self) -> str:
        return ",".join(server.url for server in self.servers)

    def wait_whole(self) -> None:
        """Until the next server may go."""
        for server in self.servers:
            until("a server has caught up with the others", server.is_whole)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


def _parsed(file: Path) -> dict[str, list[str]] | None:
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
