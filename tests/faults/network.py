"""On which network do the processes run? Namespaces on one bridge, made by nobody but us, and gone when we end."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from harness.places import Place

# The processes; devices are outside of it, so that what cuts off a node leaves it its devices.
PEERS = "10.77.0.0/26"
DEVICES = "10.77.0.254"
FIRST = {"nats": 0, "authorizer": 10, "router": 20, "ingress": 30}
PACKAGES = {"ip": "iproute2", "tc": "iproute2", "iptables": "iptables", "unshare": "util-linux", "nsenter": "util-linux"}
ENTERED = "--inside"

# What is asked of the machine, in the order in which it is needed.
PROBE = """
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
ip link add lab type bridge
ip netns add probe
ip link add probe type veth peer name eth0 netns probe
nsenter --net=/run/netns/probe iptables -w -A INPUT -s 10.0.0.1 -m statistic --mode random --probability 0.1 -j DROP
nsenter --net=/run/netns/probe iptables -w -A OUTPUT -p tcp -j REJECT --reject-with tcp-reset
nsenter --net=/run/netns/probe tc qdisc add dev eth0 root tbf rate 1mbit burst 1600 latency 1s
"""


def missing() -> str | None:
    """Why this machine cannot do it, and what would help; None: it can."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    lacking = sorted({package for program, package in PACKAGES.items() if not shutil.which(program)})
    if sys.platform != "linux":
        return "network namespaces are Linux'"
    if lacking:
        return f"programs are missing: apt-get install {' '.join(lacking)}"
    tried = subprocess.run([*_unshared(), "sh", "-exc", PROBE], check=False, capture_output=True, text=True)
    if tried.returncode == 0:
        return None
    said = " / ".join(tried.stderr.strip().splitlines()[-2:])
    return (
        f"this machine does not let us make network namespaces ({said}); run it as root or as a user who may (the "
        "sysctls kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns), in a container "
        "with --cap-add NET_ADMIN --cap-add SYS_ADMIN"
    )


def enter() -> None:
    """Begins anew in a network where nothing is but us."""
    os.execvp("unshare", [*_unshared(), sys.executable, "-m", "faults", ENTERED, *sys.argv[1:]])


class Network:
    """A bridge with a namespace for each process, and what is done to one of them."""

    def __init__(self) -> None:
        _run("mount -t tmpfs tmpfs /run")
        Path("/run/netns").mkdir()
        _run("ip link set lo up")
        _run("ip link add lab type bridge")
        _run("ip link set lab up")
        _run(f"ip addr add {DEVICES}/24 dev lab")
        self._made: set[str] = set()
        # As tc has it. Not every kernel can delay, each can hold back.
        self.slowness = "netem delay 80ms 40ms" if self._has_netem() else "tbf rate 512kbit burst 1600 latency 400ms"

    def place(self, name: str) -> Place:
        """The namespace of the process of that name; it stays when the process ends."""
        kind, number = name.rsplit("-", 1)
        address = f"10.77.0.{FIRST[kind] + int(number)}"
        if name not in self._made:
            _run(f"ip netns add {name}")
            _run(f"ip link add {name} type veth peer name eth0 netns {name}")
            _run(f"ip link set {name} master lab up")
            _run(f"ip -n {name} addr add {address}/24 dev eth0")
            _run(f"ip -n {name} link set eth0 up")
            _run(f"ip -n {name} link set lo up")
            self._made.add(name)
        return Place(address, ("nsenter", f"--net=/run/netns/{name}"))

    def cut(self, name: str) -> None:
        """Nothing comes through to or from other processes, and nobody is told."""
        self._filter(name, "-j DROP")

    def reset(self, name: str) -> None:
        """Connections with other processes are reset, and new ones refused."""
        self._filter(name, "-p tcp -j REJECT --reject-with tcp-reset")

    def slow(self, name: str) -> None:
        """Of packets to and from other processes 2 % are lost; what it sends to anybody is slowed."""
        self._filter(name, "-m statistic --mode random --probability 0.02 -j DROP")
        _run(f"tc -n {name} qdisc add dev eth0 root {self.slowness}")

    def heal(self, name: str) -> None:
        """All as before."""
        _run(f"nsenter --net=/run/netns/{name} iptables -w -F")
        subprocess.run(f"tc -n {name} qdisc del dev eth0 root".split(), check=False, capture_output=True)

    def _filter(self, name: str, rule: str) -> None:
        for end in (f"INPUT -s {PEERS}", f"OUTPUT -d {PEERS}"):
            _run(f"nsenter --net=/run/netns/{name} iptables -w -A {end} {rule}")

    def _has_netem(self) -> bool:
        tried = subprocess.run("tc qdisc add dev lab root netem delay 1ms".split(), check=False, capture_output=True)
        if tried.returncode == 0:
            _run("tc qdisc del dev lab root")
        return tried.returncode == 0


def _unshared() -> list[str]:
    # Who is not root is root in a user namespace of his own. When we end, so does whatever we have started.
    return ["unshare", *(["--map-root-user"] if os.geteuid() else []), "--net", "--mount", "--pid", "--fork", "--kill-child"]


def _run(command: str) -> None:
    ran = subprocess.run(command.split(), check=False, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{command}: {ran.stderr.strip()}")
