"""Which build is the one before? That of the commit which `previous` names, in a checkout of its own below target/."""

import os
import subprocess
from pathlib import Path

from harness.programs import ROOT, existing, profile

PINNED = Path(__file__).with_name("previous")
PLACE = ROOT / "target" / "upgrade"
SOURCE, TARGET, STAMP = PLACE / "source", PLACE / "build", PLACE / "built"


def pinned() -> str:
    """The commit."""
    return PINNED.read_text().strip()


def of_the_commit(commit: str) -> Path:
    """The folder with its programs, which are built if they are not there."""
    wanted = f"{commit} {profile()}"
    if not STAMP.exists() or STAMP.read_text().strip() != wanted:
        PLACE.mkdir(parents=True, exist_ok=True)
        STAMP.unlink(missing_ok=True)
        if not SOURCE.exists():
            _run("git", "worktree", "prune", cwd=ROOT)
            _run("git", "worktree", "add", "--detach", str(SOURCE), commit, cwd=ROOT)
        _run("git", "checkout", "--quiet", "--detach", commit, cwd=SOURCE)
        flags = ["--release"] if profile() == "release" else []
        env = os.environ | {"CARGO_TARGET_DIR": str(TARGET), "CARGO_INCREMENTAL": "0"}
        _run("cargo", "build", "--locked", "--workspace", "--bins", *flags, cwd=SOURCE, env=env)
        STAMP.write_text(wanted + "\n")
    return existing(TARGET / profile())


def described(commit: str) -> str:
    """The commit, its day, and in how many later ones what services write for each other was touched."""
    day = _said("git", "show", "--no-patch", "--format=%h of %cs", commit)
    since = _said("git", "rev-list", "--count", f"{commit}..HEAD", "--", "shared/rpc")
    return f"{day}, {since} commits to `shared/rpc` before today's"


def _run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, cwd=cwd, env=env, check=True)


def _said(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
