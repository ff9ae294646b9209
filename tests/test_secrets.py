"""Did any token or payload of this whole run reach a log or a metric? Runs last, and looks back on all of them."""

import pytest
from harness import admin
from harness.accounts import TOKENS

# Bodies that tests sent, and that nothing but a test has a reason to say.
PAYLOADS = {"param1", "ünïcödé", "temperature", "no_log_may_say_this"}


def test_no_log_holds_a_token_or_a_payload(tmp_path_factory: pytest.TempPathFactory) -> None:
    secrets = [secret.encode() for secret in TOKENS | PAYLOADS]
    logs = [log for kind in ("err", "out") for log in tmp_path_factory.getbasetemp().rglob(f"logs/*.{kind}")]
    leaks = []
    for log in logs:
        text = log.read_bytes()
        leaks += [f"{log}: {secret!r}" for secret in secrets if secret in text]
    assert not leaks


def test_no_metric_holds_a_token() -> None:
    assert not [secret for text in admin.FETCHED for secret in TOKENS | PAYLOADS if secret in text]
