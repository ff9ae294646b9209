"""Do real processes keep what is promised when something breaks? A handful of the rows of `./taskw faults`, with a short lease.

Where the machine has no network namespaces, what would be cut off is stopped instead.
"""

import subprocess
import sys

import pytest
from faults.history import History, judged
from harness.programs import ROOT

ROWS = ["node-cut-long", "router-drain", "servers-kill-all"]


def test_what_is_promised_is_kept():
    command = [sys.executable, "-m", "faults", "--or-plain", "--lease-s", "3", *(f"--row={row}" for row in ROWS)]
    ran = subprocess.run(command, cwd=ROOT / "tests", check=False, capture_output=True, text=True, timeout=115)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    assert ran.stdout.count(" calls: ") == len(ROWS), ran.stdout


@pytest.fixture
def history():
    """Two devices that are callable at a node."""
    history = History({0, 1}, lease_s=15)
    for device in (0, 1):
        history.assigned(device, 1)
        history.callable(history.connecting(device, 0))
    return history


def called(history, *executed, text=None):
    call = history.called(0, 1, 0, 5_000, 0)
    for session in executed:
        history.executed(call, session)
    history.ended(call, text or f'"{call}"')


def test_a_history_without_a_fault_is_judged_so(history, tmp_path):
    called(history, 1)
    history.write(tmp_path / "history.jsonl")
    assert judged(tmp_path / "history.jsonl") == []


@pytest.mark.parametrize(
    ("promise", "executed", "text"),
    [
        ("AtMostOnce", [1, 1], None),
        ("Unseen", [1], '{"error":"No active connection to the remote device!"}'),
        ("OfflineIsTrue", [], '{"error":"No active connection to the remote device!"}'),
        ("AnswerIsTrue", [1], '"77"'),
        ("AnswerIsTrue", [], None),
    ],
)
def test_what_is_not_kept_is_said(history, tmp_path, promise, executed, text):
    called(history, *executed, text=text)
    file = tmp_path / "history.jsonl"
    history.write(file)
    assert any(it.startswith(promise) for it in judged(file))
