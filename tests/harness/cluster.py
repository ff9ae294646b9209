"""What does a test run against? Real processes: nats-server, and any number of each service."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.accounts import Accounts
from harness.admin import Admin
from harness.nats_server import NatsCluster, NatsServer
from harness.places import Place, Places, here
from harness.ports import any_ports
from harness.processes import Process
from harness.programs import built
from harness.waiting import PATIENCE_S, until

# How a program of ours is called: the beginning of a command.
Launch = Callable[[str], list[str | Path]]

# Leases short enough that a test can wait one out, and debug logs so that all they say is looked through.
SETTINGS = {"ingress.lease_ms": "3000", "http.poll_grace_ms": "1000", "log.level": "debug,async_nats=warn,hyper=warn"}


class Service:
    """One process of one service; `start` may be called again after it has ended."""

    program: str

    def __init__(
        self,
        nats: NatsServer | NatsCluster,
        logs: Path,
        number: int,
        settings: dict[str, str],
        launch: Launch,
        places: Places = here,
    ) -> None:
        self.name = f"{self.program.removeprefix('switchboard-')}-{number}"
        self.place: Place = places(self.name)
        self._nats, self._logs, self._launch = nats, logs, launch
        self.settings = SETTINGS | settings
        self.start()

    def start(self) -> None:
        """Starts it; `wait_ready` waits for it."""
        command = [*self.place.enter, *self._launch(self.program), "--nats", self._nats.url]
        for setting, value in (any_ports(self.place.host) | self.settings).items():
            command += ["--set", f"{setting}={value}"]
        self.process = Process(self.name, command, self._logs, env=self.place.env)

    @property
    def admin(self) -> Admin:
        return Admin(self.process.wait_for_message("starting")["admin"])

    def wait_ready(self, within_s: float = PATIENCE_S) -> None:
        admin = self.admin

        def ready() -> bool:
            assert self.process.exit_code is None, f"{self.name} ended: {self.process.err}"
            return admin.is_ready()

        until(f"{self.name} is ready", ready, within_s)

    def term(self) -> int:
        """Asks it to end, and gives its exit code."""
        self.process.term()
        return self.process.wait()

    def kill(self) -> None:
        self.process.kill()

    def restart(self) -> None:
        """A new process of the same settings, ready. The old one must have ended."""
        self.start()
        self.wait_ready()


class Ingress(Service):
    """A node."""

    program = "switchboard-ingress"
    place = Place()

    @property
    def host(self) -> str:
        return self.place.host

    @property
    def mqtt_port(self) -> int:
        return int(self._serves()["mqtt"].rsplit(":", 1)[1])

    @property
    def http_port(self) -> int:
        return int(self._serves()["http"].rsplit(":", 1)[1])

    @property
    def coap_port(self) -> int:
        return int(self._serves()["coap"].rsplit(":", 1)[1])

    @property
    def mqtts_port(self) -> int:
        return int(self._serves()["mqtts"].rsplit(":", 1)[1])

    @property
    def https_port(self) -> int:
        return int(self._serves()["https"].rsplit(":", 1)[1])

    @property
    def node_id(self) -> str:
        return self._serves()["node"]

    def _serves(self) -> dict[str, str]:
        return self.process.wait_for_message("ingress serves devices")


class WholeNode(Ingress):
    """A node that brings its authorizer and its router along."""

    program = "switchboard-node"


class Authorizer(Service):
    """A process that knows the devices."""

    program = "switchboard-authorizer"


class Router(Service):
    """A process that finds targets."""

    program = "switchboard-router"


class Api(Service):
    """A process that applications call devices through."""

    program = "switchboard-api"

    @property
    def port(self) -> int:
        return int(self.process.wait_for_message("the API serves applications")["http"].rsplit(":", 1)[1])


class Identity(Service):
    """A process that NATS asks who a node is."""

    program = "switchboard-identity"


class Cluster:
    """A whole system under a NATS of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 1,
        authorizers: int = 1,
        routers: int = 1,
        whole_nodes: int = 0,
        identities: int = 0,
        apis: int = 0,
        settings: dict[str, str] | None = None,
        nats: Callable[[Path, Path], NatsServer | NatsCluster] = NatsServer,
        launch: Launch = lambda program: [built(program)],
        operator: dict[str, str] | None = None,
        places: Places = here,
    ) -> None:
        self._places = places
        self.logs = folder / "logs"
        self._settings, self._launch = settings or {}, launch
        self._services: list[Service] = []
        self.nats = nats(folder / "nats", self.logs)
        try:
            self.accounts = Accounts(self.nats.url, folder / "accounts", self._wait_heard, operator)
            self.identities = [self._made(Identity, number) for number in range(1, identities + 1)]
            self.authorizers = [self._made(Authorizer, number) for number in range(1, authorizers + 1)]
            self.routers = [self._made(Router, number) for number in range(1, routers + 1)]
            self.nodes = [self._made(Ingress, number) for number in range(1, nodes + 1)]
            for number in range(1, whole_nodes + 1):
                node = self._made(WholeNode, number)
                self.nodes.append(node)
                self.authorizers.append(node)
                self.routers.append(node)
            self.apis = [self._made(Api, number) for number in range(1, apis + 1)]
            for service in self._services:
                service.wait_ready()
        except BaseException:
            self.stop()
            raise

    def add_node(self) -> Ingress:
        node = self.made_node()
        node.wait_ready()
        return node

    def made_node(self) -> Ingress:
        """One that need not be ready."""
        self.nodes.append(self._made(Ingress, len(self.nodes) + 1))
        return self.nodes[-1]

    def add_authorizer(self, within_s: float = PATIENCE_S) -> Authorizer:
        authorizer = self._made(Authorizer, len(self.authorizers) + 1)
        self.authorizers.append(authorizer)
        authorizer.wait_ready(within_s)
        return authorizer

    def add_router(self) -> Router:
        router = self._made(Router, len(self.routers) + 1)
        self.routers.append(router)
        router.wait_ready()
        return router

    def add_api(self) -> Api:
        api = self._made(Api, len(self.apis) + 1)
        self.apis.append(api)
        api.wait_ready()
        return api

    @property
    def services(self) -> list[Service]:
        return list(self._services)

    def stop(self) -> None:
        started = time.monotonic()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda service: service.process.stop(15), self._services))
        self.nats.stop()
        print(f"stopped in {time.monotonic() - started:.1f} s")

    def _wait_heard(self, count: int) -> None:
        gauge = "switchboard_authorizer_registry_devices"
        for it in self.authorizers:
            if it.process.exit_code is None:
                until(f"{it.name} knows {count} devices", lambda it=it: it.admin.value(gauge) == count)

    def _made(self, kind: type, number: int):
        service = kind(self.nats, self.logs, number, self._settings, self._launch, self._places)
        self._services.append(service)
        return service
