"""Would deploy/helm/try-on-kind do something sensible? There is no Kubernetes here: what it says that it would do is
looked at, and the chart rendered as it wants it."""

import json
import re
import shlex

import pytest
from harness.chart import render
from harness.processes import run
from harness.programs import ROOT

SCRIPT = ROOT / "deploy" / "helm" / "try-on-kind"
IMAGE = "registry.example:5000/switchboard:1.2.3"


def commands(*arguments):
    """What it would do."""
    ran = run(SCRIPT, *arguments, "--dry-run", IMAGE).ok()
    assert not ran.err
    return [shlex.split(line.removeprefix("+ ")) for line in ran.out.splitlines() if line.startswith("+ ")]


@pytest.fixture(scope="module")
def rendered():
    """The chart, with the values that the script gives to helm."""
    (install,) = (command for command in commands() if command[0] == "helm")
    values = {}
    for setting in (it for flag, it in zip(install, install[1:], strict=False) if flag == "--set"):
        path, value = setting.split("=", 1)
        *sections, last = path.split(".")
        at = values
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = json.loads(value) if value in ("true", "false") or value.isdecimal() else value
    assert install[:4] == ["helm", "install", "sb", str(ROOT / "deploy" / "helm" / "switchboard")]
    return render(values)


def test_it_names_what_the_chart_makes(rendered):
    assert rendered.one("Deployment", "-ingress")["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE
    named = {name for command in commands() for word in command for name in re.findall(r"deployment/(sb-.*)", word)}
    assert named == {"sb-switchboard-ingress", "sb-switchboard-operator"} <= set(rendered.all("Deployment"))
    hosts = {host for command in commands() for flag, host in zip(command, command[1:], strict=False) if flag == "-h"}
    assert hosts and hosts <= set(rendered.all("Service"))
    (operator,) = rendered.one("Deployment", "-operator")["spec"]["template"]["spec"]["containers"]
    assert {"/etc/switchboard"} & {it["mountPath"] for it in operator["volumeMounts"]}


def test_it_rolls_scales_and_evacuates_and_takes_all_away():
    said = [" ".join(command) for command in commands()]
    wanted = ["kind create", "helm install", "rollout restart", "scale", "node rebalance", "node evacuate", "kind delete"]
    found = [next(number for number, command in enumerate(said) if what in command) for what in wanted]
    assert found == sorted(found), said
    assert not any("kind delete" in " ".join(command) for command in commands("--keep"))


def test_a_cluster_that_is_there_is_left_but_for_a_namespace():
    said = commands("--context", "k3s")
    assert not any(command[0] == "kind" for command in said)
    assert all("k3s" in command for command in said)
    assert said[-1][-3:] == ["delete", "namespace", "switchboard-try"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "IMAGE is missing: REGISTRY/NAME:TAG is expected"),
        (["switchboard"], "IMAGE switchboard: REGISTRY/NAME:TAG is expected"),
        ([IMAGE, "b"], f"b: one image is expected, and it is {IMAGE} already"),
        (["--fast", IMAGE], "--fast: --context NAME, --keep or --dry-run is expected"),
        (["--context"], "--context: the name of a context of the kubeconfig is expected"),
    ],
)
def test_what_it_cannot_use_is_said(arguments, message):
    ran = run(SCRIPT, *arguments)
    assert (ran.code, ran.err) == (2, f"try-on-kind: {message}\n")
