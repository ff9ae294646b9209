"""Did any token or payload of this whole run reach a log, a metric or a span? Runs last, and looks back on all of them."""

import re

import pytest
from harness import admin, collector
from harness.accounts import TOKENS

# Bodies that tests sent, and that nothing but a test has a reason to say.
PAYLOADS = {"param1", "ünïcödé", "temperature", "no_log_may_say_this"}


def test_no_log_holds_a_token_or_a_payload(tmp_path_factory: pytest.TempPathFactory) -> None:
    logs = list(tmp_path_factory.getbasetemp().rglob("logs/*.err"))
    leaks = {log: found for log in logs if (found := secrets_in(log.read_text(errors="replace")))}
    assert not leaks


def test_no_metric_holds_a_token() -> None:
    assert not [found for text in admin.FETCHED if (found := secrets_in(text))]


def test_no_span_holds_a_token_or_a_payload() -> None:
    assert not [found for text in collector.RECEIVED if (found := secrets_in(text))]


def secrets_in(text: str) -> set[str]:
    # Tokens are single words, and there are thousands of them.
    words = set(re.findall(r"[\w-]+", text))
    return (words & TOKENS) | {payload for payload in PAYLOADS if payload in text}
