"""What does a service say of itself at its admin endpoint?"""

import re
import urllib.error
import urllib.request
from dataclasses import dataclass

# Every text that any /metrics gave, for the test that looks for tokens in them.
FETCHED: list[str] = []

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    """One line of /metrics."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass
class Admin:
    """The admin endpoint of one process."""

    address: str

    def get(self, path: str) -> tuple[int, str]:
        """Status and text; status 0 when nobody listens."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def is_ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def metrics_text(self) -> str:
        status, text = self.get("/metrics")
        assert status == 200, text
        FETCHED.append(text)
        return text

    def samples(self) -> list[Sample]:
        return parse(self.metrics_text())

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name with those labels."""
        return sum(
            sample.value for sample in self.samples() if sample.name == name and labels.items() <= sample.labels.items()
        )


def parse(text: str) -> list[Sample]:
    samples = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = _SAMPLE.match(line)
            assert match, line
            name, labels, value = match.groups()
            samples.append(Sample(name, dict(_LABEL.findall(labels or "")), float(value)))
    return samples
