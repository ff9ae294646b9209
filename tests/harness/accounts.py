"""Who are the devices of a test? Customers with three devices each, imported in bulk and given out one by one."""

import itertools
import threading
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from harness.processes import Ran, run
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

    `heard(count)` is entered before so many devices are added, and left when every authorizer has them.
    """

    def __init__(self, nats_url: str, folder: Path, heard: Callable[[int], AbstractContextManager[None]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._nats_url, self._folder, self._heard = nats_url, folder, heard
        self._lock = threading.Lock()
        self._batches = itertools.count(1)
        self._spare: list[Family] = []

    def cli(self, *arguments: str, stdin: str = "") -> Ran:
        """Runs `switchboard ARGUMENTS` against this registry."""
        return run(built("switchboard"), *arguments, "--nats", self._nats_url, stdin=stdin)

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
        # One more behind them: who has heard of it has heard of all that was written before.
        with self._heard(len(identities) + 1):
            self.cli("device", "import", "--create", str(file)).ok()
            self.cli("device", "add", f"Last of {file.stem}", "--tenant", identities[-1].tenant).ok()

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
