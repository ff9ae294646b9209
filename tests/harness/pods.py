"""How do the pods of the rendered chart run without Kubernetes? By `podman play kube`, on this host's network."""

import base64
import copy
import json
import re
from pathlib import Path
from typing import Any

from harness.admin import Admin
from harness.chart import Rendered, yaml
from harness.cluster import Ingress
from harness.containers import Podman
from harness.processes import Process
from harness.waiting import until


class Pods:
    """One pod of each service, of the image that podman has."""

    def __init__(self, podman: Podman, rendered: Rendered, folder: Path) -> None:
        self._podman, self._folder = podman, folder
        self._maps = list(rendered.all("ConfigMap").values())
        services = {it["metadata"]["labels"]["app.kubernetes.io/component"] for it in rendered.all("Deployment").values()}
        self.services = {name: Pod(podman, name, pod) for name, pod in rendered.pods().items() if name in services}

    def play(self, secrets: dict[str, dict[str, str]]) -> None:
        """Starts them, once their Secrets are there."""
        for name, texts in secrets.items():
            # podman 4.3 takes a Secret's data alone.
            file = self._folder / f"{name}.json"
            file.write_text(json.dumps({key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}))
            self._podman("secret", "create", name, file).ok()
        manifests = [*self._maps, *(it.manifest for it in self.services.values())]
        file = self._folder / "pods.yaml"
        # They share the host's ports: each takes what is free.
        file.write_text(re.sub(r"0\.0\.0\.0:\d+", "127.0.0.1:0", yaml.safe_dump_all(manifests)))
        # podman writes the ConfigMap's file anew for each pod: one that ran already could read it empty.
        self._podman("play", "kube", "--start=false", file).ok()
        self._podman("pod", "start", *self.services).ok()
        for it in self.services.values():
            it.follow(self._folder / "logs")

    @property
    def node(self) -> "Node":
        return Node(self.services["ingress"].log)

    def close(self) -> None:
        self._podman("pod", "rm", "--force", "--time=0", *self.services)
        for it in self.services.values():
            if it.log:
                it.log.stop()


class Pod:
    """One pod, made of a template of the chart."""

    # None before it runs.
    log: Process | None = None

    def __init__(self, podman: Podman, name: str, template: dict[str, Any]) -> None:
        self.name = name
        self._podman = podman
        self._spec = template["spec"]
        self._container = f"{name}-{name}"

    @property
    def manifest(self) -> dict[str, Any]:
        """What podman 4.3 can make of it: no annotations of more than 63 characters, and on the host's network no ports, hence no
        probes, which are asked by `curl` from inside of the container besides."""
        spec = copy.deepcopy(self._spec) | {"hostNetwork": True}
        for container in spec["containers"]:
            for part in ("ports", "startupProbe", "readinessProbe", "livenessProbe"):
                container.pop(part)
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name}, "spec": spec}

    @property
    def admin(self) -> Admin:
        return Admin(self.log.wait_for_message("starting")["admin"])

    def follow(self, folder: Path) -> None:
        """Reads its log."""
        self.log = Process(self.name, [*self._podman.command, "logs", "--follow", self._container], folder)

    def wait_ready(self) -> None:
        """As the kubelet sees it: each probe is asked for its path."""
        (container,) = self._spec["containers"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = container[probe]["httpGet"]["path"]
            until(f"{self.name} answers {path}", lambda path=path: self.admin.get(path)[0] == 200)

    def end(self) -> int:
        """Asks it to end within the time that the chart grants; gives its exit code."""
        self._podman("stop", f"--time={self._spec['terminationGracePeriodSeconds']}", self._container).ok()
        return int(self._podman("inspect", "--format={{.State.ExitCode}}", self._container).ok().out)


class Node(Ingress):
    """The node in its pod, as devices see it."""

    def __init__(self, log: Process) -> None:
        self.process = log
