"""What in the chart follows from other files? Its README, the schema of `config`, and its copies of what lies in deploy/.

`./taskw chart` writes them anew; a test says when that has been forgotten.
"""

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "switchboard"
# What the chart sets itself, from values of its own.
CHARTS_OWN = re.compile(r"nats\.(url|user|store_user|password|credentials_file|tls_ca_file)|identity\.(join_secret|issuer_seed)|\w+\.(tls_)?listen|tls\.(certificate|key)_file")
# Folder of the chart's files: where their originals are. Charts cannot reach outside of themselves.
COPIES = {
    "files": ["services/switchboard/demo-account.json"],
    "files/nats": ["deploy/nats/permissions.conf", "deploy/nats/callout.conf"],
    "files/prometheus": ["deploy/prometheus/recording.yaml", "deploy/prometheus/alerts.yaml"],
    "files/grafana": ["deploy/grafana/*.json"],
}


def main() -> None:
    for path in stale():
        path.unlink()
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def generated() -> dict[Path, str]:
    """Every generated file, and what it should hold."""
    files = {
        CHART / "README.md": (CHART.parent / "README.in.md").read_text().replace("{{values}}\n", "".join(values())),
        CHART / "values.schema.json": schema(),
        CHART / "files" / "settings.json": whose(),
    }
    for folder, patterns in COPIES.items():
        for original in (path for pattern in patterns for path in sorted(ROOT.glob(pattern))):
            files[CHART / folder / original.name] = original.read_text()
    return files


def stale() -> list[Path]:
    """Copies whose original has gone."""
    kept = generated()
    return [path for folder in list(COPIES)[1:] for path in (CHART / folder).glob("*") if path not in kept]


def values() -> Iterator[str]:
    """The values as a list: path, default, and the comment above."""
    parents: list[str] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith("#"):
            comment.append(line.strip("# "))
        elif match := re.fullmatch(r"( *)([\w.-]+): ?(.*)", line):
            del parents[indent // 2 :]
            parents.append(match[2])
            if match[3] or comment:
                default = f" = `{match[3]}`" if match[3] else ""
                meaning = f": {' '.join(comment)}" if comment else ""
                item = f"- **`{'.'.join(parents)}`**{default}{meaning}"
                yield textwrap.fill(item, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
                yield "\n"
            comment = []
        elif not line.strip():
            comment = []


@dataclass
class Setting:
    """One of the sample configuration."""

    default: str
    comment: str
    readers: list[str]


def settings() -> dict[str, Setting]:
    """All settings, as `mqtt.listen`."""
    found: dict[str, Setting] = {}
    comment = ""
    for line in (ROOT / "deploy" / "switchboard.toml").read_text().splitlines():
        if it := re.fullmatch(r"\[(\w+)\]", line):
            section, of_section = it[1], readers(comment)
        elif it := re.fullmatch(r"#(\w+) = (.+)", line):
            found[f"{section}.{it[1]}"] = Setting(it[2], comment, readers(comment) or of_section)
        comment = f"{comment} {line.strip('# ')}" if line.startswith("# ") else ""
    return found


def readers(comment: str) -> list[str]:
    said = re.search(r"Read by ([a-z, ]+)\.", comment)
    return re.split(", | and ", said[1]) if said else []


def whose() -> str:
    """What the chart's templates have to know of each setting."""
    lines = []
    for path, it in settings().items():
        known = {"readers": it.readers, "reloaded": "Taken over while running." in it.comment, "default": json.loads(it.default)}
        lines.append(f"  {json.dumps(path)}: {json.dumps(known)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def schema() -> str:
    """The values' schema, hand-kept but for `config`, which has the settings of the sample configuration."""
    values = json.loads((CHART / "values.schema.json").read_text())
    sections: dict[str, dict] = {}
    for path, it in settings().items():
        section, name = path.split(".")
        if not CHARTS_OWN.fullmatch(path):
            sections.setdefault(section, {})[name] = setting_schema(it)
    values["properties"]["config"]["properties"] = {
        name: {"type": "object", "additionalProperties": False, "properties": settings}
        for name, settings in sections.items()
    }
    return json.dumps(values, indent=2) + "\n"


def setting_schema(it: Setting) -> dict:
    kind = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array"}[type(json.loads(it.default))]
    if bounds := re.search(r"Expects a whole number, (\d+) to (\d+)", it.comment):
        return {"type": kind, "minimum": int(bounds[1]), "maximum": int(bounds[2])}
    return {"type": kind}


if __name__ == "__main__":
    main()
