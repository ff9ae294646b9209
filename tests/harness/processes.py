"""How is a program started, heard and ended?"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from harness.waiting import PATIENCE_S, until

T = TypeVar("T")


class Process:
    """A running program. What it prints is kept in memory, and below `logs`, where it is looked through for tokens."""

    def __init__(
        self,
        name: str,
        command: list[str | Path],
        logs: Path | None,
        *,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self._lines: dict[str, list[str]] = {"out": [], "err": []}
        self._heard = threading.Condition()
        self._open_streams = 2
        self._popen = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(env),
            cwd=cwd,
            # A Ctrl-C at the tests is theirs to pass on.
            start_new_session=True,
        )
        if logs:
            logs.mkdir(parents=True, exist_ok=True)
        self._readers = []
        for stream, kind in ((self._popen.stdout, "out"), (self._popen.stderr, "err")):
            log = (logs / f"{name}.{self.pid}.{kind}" if logs else Path(os.devnull)).open("wb")
            reader = threading.Thread(target=self._read, args=(stream, kind, log), daemon=True)
            reader.start()
            self._readers.append(reader)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self._text("out")

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self._text("err")

    def write_line(self, line: str) -> None:
        assert self._popen.stdin
        self._popen.stdin.write(line.encode() + b"\n")
        self._popen.stdin.flush()

    def wait_for_line(
        self, what: str, find: Callable[[str], T | None], stream: str = "err", within_s: float = PATIENCE_S
    ) -> T:
        """The first true result of `find` over the lines of a stream, those that came already included."""
        deadline = time.monotonic() + within_s
        seen = 0
        with self._heard:
            while True:
                for line in self._lines[stream][seen:]:
                    seen += 1
                    found = find(line)
                    if found:
                        return found
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._open_streams:
                    raise AssertionError(f"{self.name} (exit {self.exit_code}) did not say: {what}\n{self._tail()}")
                self._heard.wait(left_s)

    def wait_for_message(self, message: str, within_s: float = PATIENCE_S) -> dict[str, Any]:
        """The first log line with that message."""
        return self.wait_for_line(message, lambda line: _log_line(line, message), within_s=within_s)

    def wait_for_messages(self, message: str, count: int) -> list[dict[str, Any]]:
        """The log lines so far with that message, once there are so many: a program goes on before they are written."""

        def heard() -> list[dict[str, Any]] | None:
            lines = [line for line in self.log_lines() if line["message"] == message]
            return lines if len(lines) >= count else None

        return until(f"{count} lines: {message}", heard)

    def lines_of_out(self) -> Iterator[str]:
        """Each line of standard output, as it comes, until the program ends."""
        seen = 0
        while True:
            with self._heard:
                self._heard.wait_for(lambda: len(self._lines["out"]) > seen or not self._open_streams)
                lines = self._lines["out"][seen:]
                ended = not self._open_streams
            seen += len(lines)
            yield from lines
            if ended and not lines:
                return

    def log_lines(self) -> Iterator[dict[str, Any]]:
        """Every line of the log so far."""
        for line in self.err.splitlines():
            if line.startswith("{"):
                yield json.loads(line)

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def term(self) -> None:
        self.signal(signal.SIGTERM)

    def interrupt(self) -> None:
        self.signal(signal.SIGINT)

    def kill(self) -> None:
        """Ends it without a chance to say goodbye."""
        self._popen.kill()
        self.wait()

    def wait(self, within_s: float = PATIENCE_S) -> int:
        """Its exit code, all of its output read."""
        try:
            code = self._popen.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {within_s} s\n{self._tail()}") from None
        for reader in self._readers:
            reader.join(within_s)
        return code

    def stop(self, within_s: float = PATIENCE_S) -> int | None:
        """Ends it in whatever state it is: for tidying up."""
        if self.exit_code is None:
            self.signal(signal.SIGCONT)
            self.term()
            try:
                self.wait(within_s)
            except AssertionError:
                self.kill()
        return self.exit_code

    def _text(self, stream: str) -> str:
        with self._heard:
            return "\n".join(self._lines[stream])

    def _tail(self) -> str:
        return "\n".join([*self._lines["out"][-20:], *self._lines["err"][-40:]])

    def _read(self, stream: IO[bytes], kind: str, log: IO[bytes]) -> None:
        with log:
            for line in stream:
                log.write(line)
                log.flush()
                with self._heard:
                    self._lines[kind].append(line.decode(errors="replace").rstrip("\n"))
                    self._heard.notify_all()
        with self._heard:
            self._open_streams -= 1
            self._heard.notify_all()


def run(
    *command: str | Path,
    env: dict[str, str] | None = None,
    stdin: str = "",
    within_s: float = 120,
    cwd: Path | None = None,
) -> "Ran":
    """Runs a command to its end."""
    try:
        ran = subprocess.run(
            [str(part) for part in command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=within_s,
            env=environment(env),
            cwd=cwd,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        # What it had said tells where it hangs; the exception itself shows the beginning alone, and as bytes.
        out, err = ((said or b"").decode(errors="replace") for said in (late.stdout, late.stderr))
        raise AssertionError(f"no end within {within_s} s of {' '.join(map(str, command))}\n{out}\n{err}") from None
    return Ran(command, ran.returncode, ran.stdout, ran.stderr)


class Ran:
    """How a command ended."""

    def __init__(self, command: tuple[str | Path, ...], code: int, out: str, err: str) -> None:
        self.command, self.code, self.out, self.err = command, code, out, err

    def ok(self) -> "Ran":
        assert self.code == 0, self
        return self

    def __repr__(self) -> str:
        return f"{' '.join(map(str, self.command))}: exit {self.code}\n{self.out}\n{self.err}"


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """Ours, without settings of Switchboard that somebody has set for other purposes."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SWITCHBOARD_")}
    return ours | (more or {})


def _log_line(line: str, message: str) -> dict[str, Any] | None:
    if message not in line or not line.startswith("{"):
        return None
    fields = json.loads(line)
    return fields if fields.get("message") == message else None
