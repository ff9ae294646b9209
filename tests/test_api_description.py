"""Is the API what its description says? Schemathesis, which nobody here wrote, makes requests of it, good and bad."""

import json
from pathlib import Path

from harness.accounts import TOKENS
from harness.apps import App
from harness.processes import run
from harness.programs import tool

TOOLS = Path(__file__).parents[1] / ".tools" / "schemathesis"
# Names without spaces at their ends, labels of a device's own: a schema does not say all that makes a request a good one.
UNSAID = "positive_data_acceptance"
# A call may take a millisecond, which may be over before anybody has judged it.
MAY_EXPIRE = """
[[operations]]
include-path-regex = "^/v1/(calls|devices/[^/]+/calls)$"
include-method = "POST"
checks.not_a_server_error.expected-statuses = ["2XX", "3XX", "4XX", "503", "504"]
"""


def test_requests_out_of_the_description_are_answered_as_it_says(shared_cluster, tmp_path):
    accounts = shared_cluster.accounts
    # With a family its tenant is there.
    accounts.family()
    # Of a tenant of its own: whatever is renamed and removed is nobody else's.
    accounts.cli("tenant", "add", "Described").ok()
    made = json.loads(accounts.cli("app", "add", "Reader", "--tenant", "Described", "--role", "admin", "--json").ok().out)
    TOKENS.add(made["key"])
    accounts.wait_heard()
    app = App(made["id"], made["name"], made["key"])
    url = f"http://127.0.0.1:{shared_cluster.apis[0].port}/v1/openapi.json"
    flags = ["--header", f"Authorization: {app.bearer}", "--exclude-checks", UNSAID, "--max-examples", "2"]
    # Whoever ends his own key tries nothing any more.
    flags += [word for it in ("", "/keys/{key}") for word in ("--exclude-name", f"DELETE /v1/apps/{{app}}{it}")]
    # A stream without an end, which is no one value either.
    flags += ["--exclude-path", "/v1/events"]
    flags += ["--max-time", "30", "--generation-deterministic", "--no-color", "--request-timeout", "30", "--warnings", "off"]
    config = tmp_path / "schemathesis.toml"
    config.write_text(MAY_EXPIRE)
    command = [tool("python3"), "-m", "schemathesis.cli", "--config-file", str(config), "run", url, *flags]
    ran = run(*command, env={"PYTHONPATH": str(TOOLS)}, within_s=300, cwd=tmp_path)
    assert ran.code == 0, ran
    assert "No issues found" in ran.out, ran
    # What it made is found by the others' tests, and by those that look for tokens, as they left it.
    accounts.wait_heard()
