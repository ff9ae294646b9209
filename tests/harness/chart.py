"""What does the Helm chart make of its values? Rendered by Helm's own engine."""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.programs import ROOT, existing

CHART = ROOT / "deploy" / "helm" / "switchboard"
TOOLS = existing(ROOT / ".tools" / "chart")
# Behind the packages of the tests: checkov brings older ones of the same names.
sys.path.append(str(TOOLS))

import helm_python as helm  # noqa: E402
import yaml  # noqa: E402

RELEASE, NAMESPACE = "sb", "iot"


@dataclass(frozen=True)
class Rendered:
    """The chart with one file of values."""

    values: dict
    manifests: dict[str, str]

    @cached_property
    def objects(self) -> list[dict]:
        """All objects, those of hooks too."""
        texts = [text for name, text in self.manifests.items() if name.endswith(".yaml")]
        return [it for text in texts for it in yaml.load_all(text, yaml.CSafeLoader) if it]

    @property
    def notes(self) -> str:
        return self.manifests["switchboard/templates/NOTES.txt"]

    def all(self, kind: str) -> dict[str, dict]:
        """Name to object."""
        return {it["metadata"]["name"]: it for it in self.objects if it["kind"] == kind}

    def one(self, kind: str, suffix: str = "") -> dict:
        """The object of this kind whose name ends so."""
        (found,) = (it for name, it in self.all(kind).items() if name.endswith(suffix))
        return found

    def pods(self) -> dict[str, dict]:
        """Component to what is its pod, or the template of its pods."""
        templates = {"Pod": lambda it: it, "Job": template, "Deployment": template, "StatefulSet": template}
        pods = [templates[it["kind"]](it) for it in self.objects if it["kind"] in templates]
        return {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in pods}


def template(workload: dict) -> dict:
    return workload["spec"]["template"]


def values_file(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def render(values: dict, path: Path = CHART) -> Rendered:
    """As `helm install` does it: values are checked against the schema first."""
    with helm.Chart.load(path) as chart:
        chart.validate_schema(values)
        return Rendered(values, chart.render(values, name=RELEASE, namespace=NAMESPACE))


def refusal(values: dict) -> str:
    """What Helm says to values that it does not take."""
    try:
        render(values)
    except helm.HelmError as error:
        return str(error)
    raise AssertionError(f"the chart takes {values}")


def lint(values: dict) -> list[str]:
    """What `helm lint --strict` has to say, hints left out."""
    hint = 1
    report = helm.lint(CHART, values, strict=True)
    return report["errors"] + [it["error"] for it in report["messages"] if it["severity"] > hint]
