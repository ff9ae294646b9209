"""What goes from one build to the next? A fleet with its services, an application, and the command, each of either build."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fleet.stage import Stage as Fleet
from harness.apps import add_app
from harness.programs import built

from upgrade.application import Application

NEW, OLD = "today's", "the one before"
GROUPS = ("routers", "authorizers", "nodes", "APIs")
EVERYTHING = "everything"


@dataclass
class Figures:
    """What was seen while one group went to another build."""

    # How calls ended.
    devices: dict[str, int]
    applications: dict[str, int]
    # Calls that reached a device more than once.
    twice: int
    # Connections that ended, of so many devices.
    cuts: int
    fleet: int

    @property
    def failed(self) -> int:
        """Calls that were not answered, but for those whose caller was cut off itself."""
        return sum(count for how, count in [*self.devices.items(), *self.applications.items()] if how not in ("answered", "caller cut"))


class Stage(Fleet):
    """Two copies of each service, at first all of the build before."""

    def __init__(self, folder: Path, previous: Path, *, devices: int, calls_per_second: float) -> None:
        self._previous, self.build = previous, OLD
        self.application: Application | None = None
        super().__init__(folder, nodes=2, devices=devices, calls_per_second=calls_per_second, apis=2, programs=self._program)
        try:
            self.application = Application(self.fleet, add_app(self.cluster.accounts))
            self.application.apis = list(self.cluster.apis)
            self.application.start()
        except BaseException:
            self.close()
            raise

    def take(self, group: str, build: str, calls: int) -> Figures:
        """One group, copy by copy, to a build: the new one is ready before the old one is told to end."""
        assert self.application
        self.build = build
        before = Counter(self.application.outcomes)
        replacing = {"routers": self._routers, "authorizers": self._authorizers, "nodes": self._nodes, "APIs": self._apis}
        with self.watched(calls), ThreadPoolExecutor() as pool:
            done = [pool.submit(replace) for name, replace in replacing.items() if group in (name, EVERYTHING)]
            for it in done:
                it.result()
        assert self.programs_of(group) == {self._program("switchboard").resolve().parent}, f"{group} is not of {build}"
        record = self.fleet.record
        seen = Counter(self.application.outcomes) - before
        cuts = sum(it.cuts for it in self.fleet.devices)
        return Figures(dict(record.outcomes), dict(seen), record.twice, cuts, len(self.fleet.devices))

    def programs_of(self, group: str) -> set[Path]:
        """The folders that a group's programs run from."""
        groups = {"routers": self.cluster.routers, "authorizers": self.cluster.authorizers, "nodes": self.nodes, "APIs": self.cluster.apis}
        running = [it for name, services in groups.items() if group in (name, EVERYTHING) for it in services]
        return {Path(f"/proc/{it.process.pid}/exe").resolve().parent for it in running}

    def close(self) -> None:
        if self.application:
            self.application.stop()
        super().close()

    def _program(self, name: str) -> Path:
        return self._previous / name if self.build == OLD else built(name)

    def _routers(self) -> None:
        self._replace(self.cluster.routers, self.cluster.add_router)

    def _authorizers(self) -> None:
        self._replace(self.cluster.authorizers, self.cluster.add_authorizer)

    def _nodes(self) -> None:
        for old in list(self.nodes):
            self.grow(1)
            self.end(old)

    def _apis(self) -> None:
        assert self.application
        for old in list(self.cluster.apis):
            self.application.apis.append(self.cluster.add_api())
            self.application.apis.remove(old)
            old.term()
            self.cluster.apis.remove(old)
