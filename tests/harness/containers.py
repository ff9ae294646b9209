"""How is a container run for a test? By podman and runc, with images and containers of the tests' own."""

import json
import os
import resource
import shutil
import tempfile
from pathlib import Path
from typing import Any

from harness.processes import Ran, run

# Plain copies instead of overlays, no events, no logs but what is read: works in a sandbox, and touches nothing else.
STORAGE = """\
[storage]
driver = "vfs"
runroot = "{folder}/run"
graphroot = "{folder}/store"
"""
CONTAINERS = """\
[containers]
default_ulimits = [{limits}]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
tmp_dir = "{folder}/tmp"
"""


class Podman:
    """One store of images and containers, apart from the person's own."""

    def __init__(self) -> None:
        if not shutil.which("podman"):
            raise FileNotFoundError("podman is missing; run the tests with ./taskw test-system")
        # pytest's folders are longer than podman takes.
        self._folder = Path(tempfile.mkdtemp(prefix="podman-"))
        # By default podman raises the limits, which a sandbox may forbid; it has lowered its own to these.
        nofile = lower(resource.RLIMIT_NOFILE, 1 << 20)
        nproc = lower(resource.RLIMIT_NPROC, int(Path("/proc/sys/kernel/pid_max").read_text()))
        limits = f'"nofile={nofile}:{nofile}", "nproc={nproc}:{nproc}"'
        files = {
            "CONTAINERS_STORAGE_CONF": STORAGE.format(folder=self._folder),
            "CONTAINERS_CONF": CONTAINERS.format(folder=self._folder, limits=limits),
        }
        # Its networks need nft or iptables, which are on nobody's PATH in Debian but root's.
        self.env = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        for variable, text in files.items():
            file = self._folder / f"{variable.lower()}.conf"
            file.write_text(text)
            self.env[variable] = str(file)

    def __call__(self, *arguments: str | Path, within_s: float = 60) -> Ran:
        """Runs `podman ARGUMENTS` to its end."""
        return run("podman", *arguments, env=self.env, within_s=within_s)

    @property
    def command(self) -> list[str | Path]:
        """`podman`, for a process."""
        return ["env", *(f"{name}={value}" for name, value in self.env.items()), "podman"]

    def launch(self, image: str, *flags: str | Path, network: str = "host") -> list[str | Path]:
        """The beginning of a command that runs in a container, with as few rights as Kubernetes can leave it."""
        bare = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges"]
        return [*self.command, "run", "--rm", f"--network={network}", *bare, *flags, image]

    def beside(self, pid: int) -> list[str | Path]:
        """The beginning of a command that runs in the network of a container's process."""
        own = [*self.command, "unshare"] if os.geteuid() else []
        return [*own, "nsenter", f"--net=/proc/{pid}/ns/net", "--"]

    def inspect(self, image: str) -> dict[str, Any]:
        return json.loads(self("image", "inspect", image).ok().out)[0]

    def close(self) -> None:
        self("pod", "rm", "--force", "--all")
        self("rm", "--force", "--time=0", "--all")
        self("rmi", "--force", "--all")
        shutil.rmtree(self._folder, ignore_errors=True)


def lower(limit: int, most: int) -> int:
    """The hard limit of this process, or `most`."""
    hard = resource.getrlimit(limit)[1]
    return most if hard == resource.RLIM_INFINITY else min(hard, most)
