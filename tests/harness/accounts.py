"""Who are the devices of a test? Customers with three devices each, imported in bulk and given out one by one."""

import itertools
import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.processes import Process, Ran, run
from harness.programs import built

# Every token that any registry of this run was given.
TOKENS: set[str] = {f"{name}_TEST_TOKEN" for name in ("A1", "A2", "A3", "B1", "C1")}

TENANT = "Test Tenant"
# How many customers one import brings.
BATCH = 60


@dataclass(frozen=True)
class Identity:
    """A device as the registry knows it."""

    id: str
    name: str
    token: str
    tenant: str = TENANT
    customer: str = ""


@dataclass(frozen=True)
class Family:
    """One customer's devices: they may call each other."""

    customer: str
    a: Identity
    b: Identity
    c: Identity


class Accounts:
    """The registry below one NATS, as far as the tests fill it.

    `wait_heard(count)` waits until every authorizer knows that many devices.
    """

    def __init__(
        self, nats_url: str, folder: Path, wait_heard: Callable[[int], None], env: dict[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._nats_url, self._folder, self._wait_heard, self._env = nats_url, folder, wait_heard, env
        # Of which build the command is.
        self.programs: Callable[[str], Path] = built
        self._lock = threading.Lock()
        self._batches = itertools.count(1)
        self._spare: list[Family] = []

    def cli(self, *arguments: str, stdin: str = "") -> Ran:
        """Runs `switchboard ARGUMENTS` against this registry."""
        return run(self.programs("switchboard"), *arguments, "--nats", self._nats_url, stdin=stdin, env=self._env)

    def started(self, *arguments: str) -> Process:
        """The same for a command that goes on until it is stopped."""
        command = [built("switchboard"), *arguments, "--nats", self._nats_url]
        return Process(arguments[0], command, None, env=self._env)

    def family(self) -> Family:
        """A customer that no other test has."""
        with self._lock:
            if not self._spare:
                self._import_batch()
            return self._spare.pop()

    def add(self, *identities: Identity) -> None:
        """Imports devices of one's own; their tenants and customers are made as needed."""
        file = self._folder / f"{uuid.uuid4()}.csv"
        lines = ["tenant,customer,id,name,token"]
        for it in identities:
            TOKENS.add(it.token)
            lines.append(f"{it.tenant},{it.customer},{it.id},{it.name},{it.token}")
        file.write_text("\n".join(lines) + "\n")
        self.cli("device", "import", "--create", str(file)).ok()
        self.wait_heard(identities[-1].tenant)

    def wait_heard(self, tenant: str = TENANT) -> None:
        """Waits until every authorizer has heard of all that was written before."""
        # One more behind it: who has heard of this one has heard of all that.
        self.cli("device", "add", f"Last of {uuid.uuid4()}", "--tenant", tenant).ok()
        self._wait_heard(len(json.loads(self.cli("device", "list", "--json").ok().out)))

    def _import_batch(self) -> None:
        batch = next(self._batches)
        families = []
        for number in range(BATCH):
            customer = f"Customer {batch}-{number}"
            families.append(Family(customer, *(identity(f"{customer} {part}", customer) for part in "ABC")))
        self.add(*(device for family in families for device in (family.a, family.b, family.c)))
        self._spare = families


def identity(name: str, customer: str = "", tenant: str = TENANT) -> Identity:
    """A device that does not exist yet."""
    return Identity(str(uuid.uuid4()), name, f"token-{uuid.uuid4().hex[:12]}", tenant, customer)
