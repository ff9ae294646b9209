"""How does one process get a wall clock of its own? By libfaketime, loaded before its C library.

What it cannot do is nats-server: Go asks the kernel itself. A time namespace cannot either: it shifts no wall clock.
"""

from dataclasses import replace
from pathlib import Path

from harness.places import Place

PACKAGE = "libfaketime"
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


class Clocks:
    """A file for each process, in which its difference stands; it is read again every second."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def behind(self, place: Place, name: str) -> Place:
        """The same place, with a clock of its own."""
        if name.startswith("nats"):
            return place
        self.set(name, 0)
        env = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._folder / name),
            "FAKETIME_CACHE_DURATION": "1",
            # Only what says what day it is may be wrong.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        return replace(place, env=env)

    def set(self, name: str, by_s: int) -> None:
        """Its clock is so much ahead from now on; below 0: behind."""
        (self._folder / name).write_text(f"{by_s:+d}\n")
