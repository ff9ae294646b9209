"""Does one come back from a loss of NATS' files as deploy/day-after.md has it? By what `nats` asks JetStream, word by word."""

import asyncio
import json
import re

import nats
import pytest
from harness.accounts import TOKENS
from harness.hardened import CONFIGURATION, PASSWORDS, ROLES, settings
from harness.nats_server import NatsServer
from harness.processes import run
from harness.programs import ROOT, built
from harness.raw_nats import RawNats
from harness.waiting import PATIENCE_S

KEPT = {"AUDIT": "swb_audit", "REGISTRY": "KV_swb_devices"}
KEEPER = "of-keepers"


class Site:
    """One NATS with the users of deploy/nats, and those that keep what is in it."""

    def __init__(self, folder) -> None:
        TOKENS.update({KEEPER, *PASSWORDS.values()})
        folder.mkdir()
        text = (CONFIGURATION / "permissions.conf").read_text()
        for account in KEPT:
            text = text.replace(f"  {account}: {{\n", f"  {account}: {{\n{keepers(account)}")
        (folder / "permissions.conf").write_text(text)
        (folder / "switchboard.conf").write_text((CONFIGURATION / "switchboard.conf").read_text())
        env = {f"SWITCHBOARD_{role.upper()}_PASSWORD": PASSWORDS[role] for role in ROLES} | {"AUDIT_KEEPER_PASSWORD": KEEPER}
        self.nats = NatsServer(folder / "nats", folder, "--config", str(folder / "switchboard.conf"), env=env)
        self._env = {f"SWITCHBOARD_NATS__{name.upper()}": value for name, value in settings("operator").items()}

    def cli(self, *arguments):
        return run(built("switchboard"), *arguments, "--nats", self.nats.url, env=self._env).ok().out

    def records(self) -> list[str]:
        assert "BROKEN" not in self.cli("audit", "verify")
        return [f"{it['number']} {it['kind']}" for it in json.loads(self.cli("audit", "query", "--json"))]

    def keeping(self, account: str, what, *arguments):
        async def as_keeper():
            refused = []

            async def note(error):
                refused.append(error)

            connection = await nats.connect(self.nats.url, user=keeper(account), password=KEEPER, error_cb=note)
            try:
                done = await what(connection, KEPT[account], *arguments)
                await connection.flush()
            finally:
                await connection.close()
            assert refused == []
            return done

        return asyncio.run(as_keeper())


def keeper(account: str) -> str:
    return f"{account.lower()}-keeper"


def keepers(account: str) -> str:
    """The block of the page."""
    (block,) = re.findall(r"```\n(users: .*?)```", (ROOT / "deploy" / "day-after.md").read_text(), re.DOTALL)
    return block.replace("audit-keeper", keeper(account)).replace("swb_audit", KEPT[account])


async def backup(connection, stream: str) -> tuple[dict, list[bytes]]:
    """`nats stream backup`: what JetStream says of the stream, and its files in parts."""
    await asked(connection, f"$JS.API.STREAM.INFO.{stream}")
    inbox = connection.new_inbox()
    parts = await connection.subscribe(inbox)
    said = await asked(connection, f"$JS.API.STREAM.SNAPSHOT.{stream}", {"deliver_subject": inbox, "chunk_size": 1_024})
    kept = []
    while (part := await parts.next_msg(PATIENCE_S)).data:
        # Of all parts but the last it is told, or it stops after some megabytes.
        if part.reply:
            await connection.publish(part.reply)
        kept.append(part.data)
    return said, kept


async def restore(connection, stream: str, said: dict, kept: list[bytes]) -> None:
    """`nats stream restore`."""
    request = {"config": said["config"], "state": said["state"]}
    where = (await asked(connection, f"$JS.API.STREAM.RESTORE.{stream}", request))["deliver_subject"]
    for part in kept:
        await connection.request(where, part, PATIENCE_S)
    assert "error" not in json.loads((await connection.request(where, b"", PATIENCE_S)).data)
    await asked(connection, f"$JS.API.STREAM.INFO.{stream}")


async def asked(connection, subject: str, request: dict | None = None) -> dict:
    answer = json.loads((await connection.request(subject, json.dumps(request or {}).encode(), PATIENCE_S)).data)
    if error := answer.get("error"):
        raise nats.js.errors.APIError.from_error(error)
    return answer


@pytest.fixture
def site(tmp_path):
    """Makes one under a name."""
    made = []

    def site(name):
        made.append(Site(tmp_path / name))
        return made[-1]

    yield site
    for it in made:
        it.nats.stop()


def test_after_a_loss_of_all_files_the_audit_goes_on(site, tmp_path):
    lost = site("lost")
    lost.cli("tenant", "add", "Acme")
    lost.cli("device", "add", "Pump")
    system = str(tmp_path / "switchboard.backup")
    lost.cli("backup", system)
    audit = lost.keeping("AUDIT", backup)
    lost.nats.stop()

    anew = site("anew")
    anew.keeping("AUDIT", restore, *audit)
    anew.cli("restore", system)
    anew.cli("device", "rename", "Pump", "Pump 2")
    assert {"1 tenant.add", "2 device.add", "3 device.rename"} < set(anew.records())


def test_the_audit_is_restored_before_anybody_writes_a_record(site, tmp_path):
    lost = site("lost")
    lost.cli("tenant", "add", "Acme")
    system = str(tmp_path / "switchboard.backup")
    lost.cli("backup", system)
    audit = lost.keeping("AUDIT", backup)

    too_late = site("too-late")
    too_late.cli("restore", system)
    with pytest.raises(nats.js.errors.APIError) as refused:
        too_late.keeping("AUDIT", restore, *audit)
    assert refused.value.err_code == 10_130


def test_the_registry_goes_along_as_nats_has_it(site):
    lost = site("lost")
    lost.cli("tenant", "add", "Acme")
    lost.cli("device", "add", "Pump")
    registry = lost.keeping("REGISTRY", backup)
    anew = site("anew")
    anew.keeping("REGISTRY", restore, *registry)
    assert "Pump" in anew.cli("device", "list")


@pytest.mark.parametrize("account", KEPT)
def test_who_keeps_changes_nothing(site, account):
    kept = site("kept")
    operations = ["STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE", "CONSUMER.CREATE"]
    with RawNats(kept.nats.url, keeper(account), KEEPER) as connection:
        others = [stream for stream in KEPT.values() if stream != KEPT[account]]
        subjects = [f"$JS.API.{it}.{KEPT[account]}" for it in operations] + [f"$JS.API.STREAM.SNAPSHOT.{it}" for it in others]
        for subject in [*subjects, "swb.audit.none.operator", "$KV.swb_devices.device.x", f"swb.js.STREAM.DELETE.{KEPT[account]}"]:
            assert "Permissions Violation" in (connection.publish(subject, "{}") or ""), subject
