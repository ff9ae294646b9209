"""How does a test run the compose file? As it is, by podman-compose, with containers, networks and volumes of the test's own."""

import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from harness.containers import Podman
from harness.processes import Ran, run
from harness.programs import ROOT, existing, tool

FOLDER = ROOT / "deploy" / "compose"
FILE = FOLDER / "compose.yaml"
TOOLS = existing(ROOT / ".tools" / "compose")
# Behind the packages of the tests, which may bring other versions.
sys.path.append(str(TOOLS))

import yaml  # noqa: E402

PROFILES = ("--profile", "demo", "--profile", "operator")
# A sandbox may forbid to raise limits.
OVERRIDE = """\
services:
  ingress-1: {ulimits: !reset null}
  ingress-2: {ulimits: !reset null}
  api-1: {ulimits: !reset null}
  api-2: {ulimits: !reset null}
"""
NETWORK = """\
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
# In place of an image that no registry gives here. busybox brings what the health checks ask with.
STAND_IN = """\
FROM scratch
COPY files /
COPY --chown={user} empty {volume}
USER {user}
ENV PATH=/bin
ENTRYPOINT ["{program}"]
"""


def module(name: str, *arguments: str | Path, env: dict[str, str] | None = None, within_s: float = 60) -> Ran:
    """Runs a program of the tools to its end."""
    return run(sys.executable, "-m", name, *arguments, env={"PYTHONPATH": str(TOOLS)} | (env or {}), within_s=within_s)


class Compose:
    """The compose file with one environment file."""

    def __init__(self, env_file: Path, *flags: str | Path, env: dict[str, str] | None = None) -> None:
        self._env = env
        self._flags = ["--env-file", env_file, "--file", FILE, *flags]

    def __call__(self, *arguments: str | Path) -> Ran:
        return module("podman_compose", *self._flags, *arguments, env=self._env, within_s=300)

    def config(self) -> dict[str, Any]:
        """The file as podman-compose understands it, variables put in."""
        return yaml.safe_load(self(*PROFILES, "config").ok().out)


class ComposeSystem:
    """What the file describes, as containers. Devices find it at `address`, an address of its own on this machine."""

    def __init__(self, folder: Path, passwords: str) -> None:
        self.podman = Podman()
        containers_conf = Path(self.podman.env["CONTAINERS_CONF"])
        with containers_conf.open("a") as file:
            file.write(NETWORK.format(folder=containers_conf.parent))
        self.address = f"127.{random.randint(16, 254)}.{random.randint(0, 254)}.{random.randint(1, 254)}"
        (folder / "env").write_text(f"{passwords}DEVICES_ADDRESS={self.address}\nOPERATORS_ADDRESS={self.address}\n")
        (folder / "override.yaml").write_text(OVERRIDE)
        # Names of networks are the whole machine's.
        self._project = f"test{os.getpid()}"
        flags = ["--file", folder / "override.yaml", "--project-name", self._project]
        self.compose = Compose(folder / "env", *flags, env=self.podman.env)

    def build(self, folder: Path, images: dict[str, str]) -> None:
        """Ours as it is built for use; NATS' and Prometheus' of the programs that are here."""
        env = self.podman.env | {"PROFILE": "dev", "TAG": images["router-1"]}
        run(ROOT / "deploy" / "image" / "build", env=env, within_s=1_500).ok()
        self._stand_in(folder / "nats", images["nats-1"], tool("nats-server"), "/data", "0:0")
        prometheus = existing(Path("/usr/bin/prometheus"))
        self._stand_in(folder / "prometheus", images["prometheus"], prometheus, "/prometheus", "65534:65534")

    def container(self, service: str) -> str:
        return f"{self._project}_{service}_1"

    def logs(self, service: str) -> str:
        ran = self.podman("logs", self.container(service))
        return ran.out + ran.err

    def close(self) -> None:
        self.podman("rm", "--force", "--time=0", "--all")
        self.podman("volume", "rm", "--force", "--all")
        self.podman("network", "prune", "--force")
        self.podman.close()

    def _stand_in(self, folder: Path, tag: str, program: Path, volume: str, user: str) -> None:
        root, busybox = folder / "files", existing(Path("/bin/busybox"))
        (folder / "empty").mkdir(parents=True)
        (root / "bin").mkdir(parents=True)
        (root / "bin" / "wget").symlink_to("busybox")
        for file in (program, busybox):
            shutil.copy(file, root / "bin")
        for library in libraries(program):
            copy = root / library.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, copy)
        file = folder / "Containerfile"
        file.write_text(STAND_IN.format(user=user, volume=volume, program=program.name))
        run("buildah", "build", "--quiet", "--file", file, "--tag", tag, folder, env=self.podman.env).ok()


def libraries(program: Path) -> list[Path]:
    """What the dynamic linker would load for it, and that linker."""
    words = run("ldd", program).out.split()
    return [Path(word) for word in words if word.startswith("/")]
