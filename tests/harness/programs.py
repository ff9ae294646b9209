"""Where are the programs that the tests start?"""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools" / "venv" / "bin"


def built(name: str) -> Path:
    """A program of ours, as `./taskw test-system` builds it."""
    return existing(ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / profile() / name)


def profile() -> str:
    """How cargo has built what is tested."""
    return os.environ.get("SWITCHBOARD_TEST_PROFILE", "debug")


def tool(name: str) -> Path:
    """A pinned tool, as `./taskw test-system` fetches it."""
    return existing(TOOLS / name)


def pins(list_name: str) -> dict[str, str]:
    """Package to version, as `.taskw/<list_name>.txt` pins them."""
    text = (ROOT / ".taskw" / f"{list_name}.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run the tests with ./taskw test-system")
    return path
