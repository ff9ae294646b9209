"""How do the containers of the rendered chart run without Kubernetes? As processes here, with their own commands, files and variables.

What a container finds by name, address or path is put in its place: other pods, ports, mounted files, programs.
"""

import base64
import re
from pathlib import Path

from harness.admin import Admin
from harness.chart import Rendered
from harness.ports import free_ports
from harness.processes import Process, Ran, run
from harness.programs import built, tool
from harness.waiting import until

SERVERS = 3
SERVICES = ["identity", "authorizer", "router", "ingress"]
MOUNT = re.compile(r"/(?:etc|run)/(?:switchboard|nats|demo)(?=/)|/data\b")


class ChartSystem:
    """Its NATS servers, and one pod of each service."""

    def __init__(self, rendered: Rendered, folder: Path, given: dict[str, dict[str, str]] | None = None) -> None:
        self._rendered, self._folder = rendered, folder
        # Those that it makes, and those that are given.
        made = {name: {key: decoded(it) for key, it in made["data"].items()} for name, made in rendered.all("Secret").items()}
        (self._passwords,) = made.values()
        self._secrets = made | (given or {})
        self._ports = {port: free_ports(SERVERS) for port in (4222, 6222, 8222)}
        self._nats = rendered.one("StatefulSet")["metadata"]["name"]
        ingress = rendered.one("Service", "-ingress")
        self._ingress_address = re.compile(rf"^{ingress['metadata']['name']}:(\d+)$")
        self._ingress_ports = {str(port["port"]): port["name"] for port in ingress["spec"]["ports"]}
        self._processes: list[Process] = []
        try:
            for number in range(SERVERS):
                self.start("nats", f"{self._nats}-{number}", number)
            for server in self._processes:
                server.wait_for_line("Server is ready", lambda line: "Server is ready" in line)
            self.services = {name: self.start(name) for name in SERVICES if name in rendered.pods()}
        except BaseException:
            self.stop()
            raise

    def wait_ready(self) -> None:
        for name, process in self.services.items():
            admin = Admin(process.wait_for_message("starting")["admin"])
            until(f"{name} is ready", admin.is_ready)

    def start(self, component: str, pod: str = "", number: int = 0, container: str = "") -> Process:
        """A pod's container, the only one or this one, until all is stopped."""
        pod = pod or component
        command, env = self._container(component, pod, number, container)
        process = Process(pod, command, self._folder / "logs", env=env)
        self._processes.append(process)
        return process

    def device_address(self, protocol: str) -> str:
        return self.services["ingress"].wait_for_message("ingress serves devices")[protocol]

    def run(self, component: str, container: str = "", instead: dict[str, str] | None = None) -> Ran:
        """A container to its end, with other arguments in place of some."""
        command, env = self._container(component, component, name=container)
        return run(*((instead or {}).get(it, it) for it in command), env=env)

    def exec(self, component: str, *command: str) -> Ran:
        """As `kubectl exec`: a command of the image beside a running container, with its files and variables."""
        root = self._folder / component
        _, env = self._container(component, component)
        program, *arguments = command
        return run(built(Path(program).name), *(self._here(argument, root, 0) for argument in arguments), env=env)

    def password(self, user: str) -> str:
        return self._passwords[user]

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.stop()

    def _container(self, component: str, pod: str, number: int = 0, name: str = "") -> tuple[list[str], dict[str, str]]:
        """A container's command and environment, once the files that it mounts are there."""
        spec = self._rendered.pods()[component]["spec"]
        containers = [*spec.get("initContainers", []), *spec["containers"]]
        (container,) = (it for it in containers if name in ("", it["name"]))
        root = self._folder / pod
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            folder = root / mount["mountPath"].lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
            if name := volumes.get(mount["name"], {}).get("configMap", {}).get("name"):
                for file, text in self._rendered.one("ConfigMap", name)["data"].items():
                    (folder / file).write_text(self._here(text, root, number))
            if secret := volumes.get(mount["name"], {}).get("secret"):
                for file, text in self._secrets[secret["secretName"]].items():
                    (folder / file).write_text(text)
        program, *arguments = container["command"]
        here = tool("nats-server") if component == "nats" else built(Path(program).name)
        command = [str(here), *(self._here(argument, root, number) for argument in arguments)]
        env = {it["name"]: self._value(it, pod) for it in container.get("env", [])}
        # As Kubernetes has it of the arguments.
        return [re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], it) for it in command], env

    def _here(self, text: str, root: Path, number: int) -> str:
        for server in range(SERVERS):
            for port, ports in self._ports.items():
                text = text.replace(f"{self._nats}-{server}.{self._nats}:{port}", f"127.0.0.1:{ports[server]}")
        for port, ports in self._ports.items():
            text = text.replace(f"0.0.0.0:{port}", f"127.0.0.1:{ports[number]}")
        text = re.sub(r"0\.0\.0\.0:\d+", "127.0.0.1:0", text)
        text = self._ingress_address.sub(lambda found: self.device_address(self._ingress_ports[found[1]]), text)
        return MOUNT.sub(lambda found: f"{root}{found[0]}", text)

    def _value(self, variable: dict, pod: str) -> str:
        match variable:
            case {"value": value}:
                return value
            case {"valueFrom": {"secretKeyRef": {"name": name, "key": key}}}:
                return self._secrets[name][key]
            case {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}:
                return pod
        raise AssertionError(f"what is {variable}?")


def decoded(text: str) -> str:
    return base64.b64decode(text).decode()
