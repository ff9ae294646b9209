"""What does an operator's Prometheus see? A real one, scraping the services of a cluster once a second.

Routers have the labels of pods, the others have not: boards and rules must do with both.
"""

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from harness.cluster import Cluster, Router, Service
from harness.ports import free_ports
from harness.processes import Process
from harness.programs import ROOT
from harness.waiting import until

DEPLOY = ROOT / "deploy" / "prometheus"


class Prometheus:
    """Debian's Prometheus, with the project's rules. It scrapes an exporter of NATS, too, where its address is given."""

    def __init__(self, cluster: Cluster, folder: Path, nats_exporter: str | None = None) -> None:
        folder.mkdir()
        for rules in ("recording.yaml", "alerts.yaml"):
            shutil.copy(DEPLOY / rules, folder)
        programs = dict.fromkeys(it.program for it in cluster.services)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["recording.yaml", "alerts.yaml"],
            "scrape_configs": [
                {"job_name": program, "static_configs": [_target(it) for it in cluster.services if it.program == program]}
                for program in programs
            ],
        }
        if nats_exporter:
            labels = {"namespace": "tests", "release": "switchboard"}
            config["scrape_configs"].append({"job_name": "nats", "static_configs": [{"targets": [nats_exporter], "labels": labels}]})
        # JSON is YAML.
        (folder / "prometheus.yaml").write_text(json.dumps(config))
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        self.process = Process(
            "prometheus",
            [
                *("prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"),
                *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
            ],
            cluster.logs,
        )
        try:
            until("Prometheus is ready", self._is_ready)
            until("everybody is scraped", lambda: len(self.query('up{job!="nats"} == 1')) == len(cluster.services))
        except BaseException:
            self.stop()
            raise

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        return self._ask("query", query=expr)["result"]

    def query_range(self, expr: str, start: float, end: float, step_s: int) -> list[dict[str, Any]]:
        return self._ask("query_range", query=expr, start=start, end=end, step=step_s)["result"]

    def label_values(self, label: str, selector: str) -> list[str]:
        return self._ask(f"label/{label}/values", **{"match[]": selector})

    def metadata(self) -> dict[str, Any]:
        """What is known of each metric that was scraped, by name."""
        return self._ask("metadata")

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, as it was read."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def stop(self) -> None:
        self.process.stop()

    def _is_ready(self) -> bool:
        assert self.process.exit_code is None, self.process.err
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def _ask(self, path: str, **parameters: object) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None


def _target(service: Service) -> dict[str, Any]:
    labels = {"namespace": "tests", "release": "switchboard"}
    if isinstance(service, Router):
        labels |= {"pod": service.name, "zone": "here"}
    return {"targets": [service.admin.address], "labels": labels}
