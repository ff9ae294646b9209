"""Which addresses would a process take by default? None of them is free for certain: every test has ports of its own."""

import functools
import re
import socket

from harness.processes import run
from harness.programs import built

HOST = "127.0.0.1"
ANY = f"{HOST}:0"


@functools.cache
def any_ports(host: str = HOST) -> dict[str, str]:
    """Every setting for an address to listen on, and in its place one that the system chooses."""
    settings, section = {}, ""
    for line in run(built("switchboard"), "config", "sample").ok().out.splitlines():
        if match := re.match(r"\[(\w+)\]", line):
            section = match[1]
        elif match := re.match(r'#? ?(\w*listen) = "[^"]+"', line):
            settings[f"{section}.{match[1]}"] = f"{host}:0"
    return settings


def free_ports(count: int) -> list[int]:
    """Ports that nobody has just now: for programs that must know each other's before either runs."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [it.getsockname()[1] for it in sockets]
    for it in sockets:
        it.close()
    return ports
