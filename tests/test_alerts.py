"""Can an operator rely on the alerts? Each fires and stays silent in a case of promtool's, and has its entry in the runbook."""

import json
import re

import pytest
from harness.processes import run
from harness.programs import ROOT
from harness.prometheus import Prometheus
from harness.waiting import until

FOLDER = ROOT / "deploy" / "prometheus"
RULES = (FOLDER / "alerts.yaml").read_text()
RUNBOOK = (FOLDER / "runbook.md").read_text()
CASES = sorted((FOLDER / "tests").glob("*.yaml"))
ALERTS = re.findall(r"- alert: (\w+)", RULES)


def test_the_rules_and_the_sample_configuration_are_valid():
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", FOLDER / "recording.yaml", FOLDER / "alerts.yaml").ok()
    # It looks at the rule files that it names, too.
    run("promtool", "check", "config", FOLDER / "prometheus.yaml").ok()


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_the_cases(file):
    run("promtool", "test", "rules", file).ok()


def test_faults_are_seen(new_cluster, tmp_path):
    """In what services really say: what must last for a while before it alarms is pending at once."""
    cluster = new_cluster()
    cluster.accounts.family()
    prometheus = Prometheus(cluster, tmp_path / "prometheus")
    try:
        until("all is well", lambda: not pending(prometheus))
        cluster.routers[0].kill()
        until("the router is missed", lambda: pending(prometheus) >= {"SwitchboardDown", "SwitchboardNoRouter"})
        cluster.nats.stop()
        no_nats = {"SwitchboardNatsDisconnected", "SwitchboardNotReady", "SwitchboardNoIngress", "SwitchboardNoAuthorizer"}
        until("NATS is missed", lambda: pending(prometheus) >= no_nats)
    finally:
        prometheus.stop()


def pending(prometheus):
    return {it["metric"]["alertname"] for it in prometheus.query("ALERTS")}


def test_every_alert_fires_in_a_case_and_stays_silent_in_one():
    cases = re.findall(r"alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:( \[\])?", "".join(file.read_text() for file in CASES))
    fires, silent = ({name for name, none in cases if bool(none) == is_silent} for is_silent in (False, True))
    assert fires == silent == set(ALERTS)
    assert len(ALERTS) == len(set(ALERTS)) > 30


def test_every_alert_says_how_bad_it_is_and_where_to_read_on():
    for name, rule in re.findall(r"- alert: (\w+)(.*?)(?=\n      - alert:|\n  #|\Z)", RULES, re.DOTALL):
        assert re.search(r"severity: (critical|warning)\b", rule), name
        assert re.search(r"\n +summary: .+\n +description: .+\n", rule), name
        assert f"runbook_url: deploy/prometheus/runbook.md#{name.lower()}" in rule, name


def test_nobody_from_outside_wakes_anybody():
    """What pages says that services are missing or know too little: no stranger, device or customer brings it about."""
    critical = re.findall(r"- alert: (\w+)\n(?:(?!- alert:)[\s\S])*?severity: critical", RULES)
    assert set(critical) == {
        "SwitchboardUnavailableFast",
        "SwitchboardNoIngress",
        "SwitchboardNoAuthorizer",
        "SwitchboardNoRouter",
        "SwitchboardNoIdentity",
        "SwitchboardNoApi",
        "SwitchboardNatsDisconnected",
        "SwitchboardNatsNoLeader",
        "SwitchboardRegistryStale",
        "SwitchboardDevicesUnreachable",
        "SwitchboardPoliciesUnread",
        "SwitchboardCertificateExpiresNow",
    }


def test_the_runbook_has_an_entry_for_every_alert_and_no_other():
    entries = re.findall(r"^### (\w+)\n\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in entries] == ALERTS, "in the order of the rules"
    for name, text in entries:
        for part in ("**Callers see:**", "**Look at:**", "**Do:**"):
            assert part in text, (name, part)


def test_the_runbook_names_what_is_on_the_boards():
    boards = [json.loads(file.read_text()) for file in (ROOT / "deploy" / "grafana").glob("*.json")]
    # One at each percentile is named once.
    panels = {re.sub(r", p\d+$", "", panel["title"]) for board in boards for panel in board["panels"]}
    named = {" ".join(it.split()) for it in re.findall(r"(?<!\*)\*(?!\*)([^*]+)\*(?!\*)", RUNBOOK)}
    assert len(named) > 30
    assert named - panels - {board["title"] for board in boards} - set(ALERTS) == set()


def test_the_runbook_quotes_what_callers_read():
    """Word for word: somebody will search for it."""
    said = (ROOT / "tests" / "harness" / "said.py").read_text()
    quoted = set(re.findall(r"`([A-Z][^`]+!)`", RUNBOOK))
    assert quoted and all(text in said for text in quoted), quoted


def test_the_runbook_quotes_what_logs_say():
    code = "".join(file.read_text() for folder in ("services", "shared") for file in (ROOT / folder).glob("*/src/**/*.rs"))
    quoted = set(re.findall(r"`((?:the|an?) [a-z' ]+)`", RUNBOOK))
    assert len(quoted) > 5
    assert {text for text in quoted if text not in code} == set()
