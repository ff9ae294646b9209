"""What is a system under the NATS users of deploy/nats? Each service with its own, on a server that has them."""

import json
import re
import secrets
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from harness.accounts import TOKENS
from harness.cluster import Cluster
from harness.nats_server import NatsCluster, NatsServer
from harness.processes import run
from harness.programs import built
from harness.raw_nats import RawNats

CONFIGURATION = Path(__file__).parents[2] / "deploy/nats"
ROLES = ["ingress", "authorizer", "router", "api", "admin", "operator", "listener"]
# Known to NATS where it asks about nodes.
IDENTITY = "identity"
# Who reaches JetStream as another user than the rest of NATS.
STORE_USERS = {"authorizer": "authorizer-store", "router": "router-store"} | {it: it for it in ("api", "admin", "operator")}
PASSWORDS = {role: f"of-{role}-{secrets.token_hex(8)}" for role in [*ROLES, IDENTITY]}
USERS = [*ROLES, "authorizer-store", "router-store"]
# Where a test listens: a user that may do everything, in each account.
ACCOUNTS = re.findall(r"^  ([A-Z]+): \{$", (CONFIGURATION / "permissions.conf").read_text(), re.MULTILINE)
WITNESS_PASSWORD = f"of-witness-{secrets.token_hex(8)}"


class Hardened:
    """A whole system whose users have the rights of deploy/nats and no other; with `identities`, each node its own; with
    `keeps`, the last copy of its API keeps the registry."""

    def __init__(
        self, folder: Path, kind: type[NatsServer | NatsCluster] = NatsServer, *, identities: int = 0, keeps: bool = False, **options: object
    ) -> None:
        TOKENS.update(PASSWORDS.values())
        # One for each copy, in the order that they are started in.
        api_users = iter(["api"] * (options.get("apis", 0) - keeps) + ["admin"] * keeps)
        environment = {f"SWITCHBOARD_{role.upper()}_PASSWORD": password for role, password in PASSWORDS.items()}
        configuration = str(with_witnesses(folder))
        if identities:
            seed, environment["SWITCHBOARD_IDENTITY_ISSUER"] = new_issuer()
            TOKENS.add(seed)
            options["settings"] = {"identity.issuer_seed": seed, "identity.join_secret": PASSWORDS["ingress"], **options.get("settings", {})}
            configuration = str(folder / "identified.conf")
        self.cluster = Cluster(
            folder,
            nats=lambda at, logs: kind(at, logs, "--config", configuration, env=environment),
            launch=partial(launch, folder, api_users=api_users),
            identities=identities,
            operator={f"SWITCHBOARD_NATS__{name.upper()}": value for name, value in settings("operator").items()},
            **options,
        )

    def connect(self, user: str, key: str = "") -> RawNats:
        """As who has stolen a user's password, and a node's key."""
        connection = RawNats(self.cluster.nats.url, user, PASSWORDS[user.removesuffix("-store")], key)
        assert connection.refused is None
        return connection

    def witness(self, account: str) -> RawNats:
        """Somebody in an account who may do everything there."""
        connection = RawNats(self.cluster.nats.url, f"witness-{account}", WITNESS_PASSWORD)
        assert connection.refused is None
        return connection

    def kick(self, user: str) -> None:
        """NATS closes this user's connections."""
        administrator = RawNats(self.cluster.nats.url, "witness-administrator", WITNESS_PASSWORD)
        assert administrator.refused is None
        found = json.loads(administrator.ask("$SYS.REQ.SERVER.PING.CONNZ", '{"auth":true}').body)
        (kicked,) = [it["cid"] for it in found["data"]["connections"] if it["authorized_user"] == user]
        answer = administrator.ask(f"$SYS.REQ.SERVER.{found['server']['id']}.KICK", json.dumps({"cid": kicked}))
        assert '"error"' not in answer.body, answer.body
        administrator.__exit__()

    def violations(self) -> list[str]:
        """What NATS has refused so far."""
        return [line for line in self.cluster.nats.process.err.splitlines() if "iolation" in line]


def new_issuer() -> tuple[str, str]:
    """A key to sign identities with, and what NATS is told of it."""
    lines = run(built("switchboard-identity"), "--new-issuer").ok().out.split()
    seed, public = (line.partition("=")[2] for line in lines)
    return seed, public


def settings(role: str) -> dict[str, str]:
    given = {"user": role, "password": PASSWORDS[role]}
    return given | {"store_user": STORE_USERS[role]} if role in STORE_USERS else given


def launch(folder: Path, program: str, api_users: Iterator[str]) -> list[str | Path]:
    role = program.removeprefix("switchboard-")
    role = next(api_users) if role == "api" else role
    given = settings(role) if role in PASSWORDS else settings_of_all(folder)
    more = ["--set", "api.administration=true"] if role == "admin" else []
    return [built(program), *(word for name, value in given.items() for word in ("--set", f"nats.{name}={value}")), *more]


def settings_of_all(folder: Path) -> dict[str, str]:
    """For a process of several services: each has the rights that it has by itself."""
    files = folder / "passwords"
    files.mkdir(exist_ok=True)
    for role, password in PASSWORDS.items():
        (files / role).write_text(password)
    return {"user": "{service}", "store_user": "{service}-store", "password_file": f"{files}/{{service}}"}


def with_witnesses(folder: Path) -> Path:
    """The configuration, with one more user in each account."""
    folder.mkdir(parents=True, exist_ok=True)
    text = (CONFIGURATION / "permissions.conf").read_text()
    for account in ACCOUNTS:
        witness = f"{{ user: witness-{account}, password: {WITNESS_PASSWORD} }}"
        begins, ends = f"  {account}: {{\n", "    users: [\n"
        before, after = text.split(begins)
        after = after.replace(ends, f"{ends}      {witness}\n", 1) if after.startswith(ends) else f"    users: [ {witness} ]\n{after}"
        text = f"{before}{begins}{after}"
    administrator = f'  "$SYS": {{ users: [ {{ user: witness-administrator, password: {WITNESS_PASSWORD} }} ] }}\n'
    text = text.replace("accounts {\n", f"accounts {{\n{administrator}", 1)
    (folder / "permissions.conf").write_text(text)
    # Who listens may be silent for as long as a test does other things.
    text = (CONFIGURATION / "switchboard.conf").read_text().replace('ping_interval: "3s"', 'ping_interval: "300s"')
    (folder / "switchboard.conf").write_text(text)
    witnesses = ", ".join(f"witness-{account}" for account in [*ACCOUNTS, "administrator"])
    text = (CONFIGURATION / "callout.conf").read_text()
    (folder / "identified.conf").write_text((CONFIGURATION / "identified.conf").read_text())
    (folder / "callout.conf").write_text(text.replace("auth_users: [", f"auth_users: [{witnesses}, "))
    return folder / "switchboard.conf"
