"""Is a configuration judged before it is used? Every fault at once, where it stands, and no unknown setting."""

import re

import pytest
from harness.processes import run
from harness.programs import ROOT, built

SAMPLE = ROOT / "deploy" / "switchboard.toml"
SECURITY = ROOT / "deploy" / "security.md"
PROGRAMS = ["switchboard-ingress", "switchboard-authorizer", "switchboard-router"]


def config(*arguments, env=None):
    return run(built("switchboard"), "config", *map(str, arguments), env=env)


def test_the_sample_file_is_sound():
    config("check", "--config", SAMPLE).ok()


def test_what_is_softer_than_the_defaults_is_named():
    """All that the page names at once, and nothing where nothing is set."""
    assert config("check").ok().out == "The configuration is sound.\n"
    softer = dict(re.findall(r"`(\w+\.\w+) = ([^`]*)`", SECURITY.read_text()))
    flags = [part for setting, value in softer.items() for part in ("--set", f"{setting}={value}")]
    sound, _, *named = config("check", *flags).ok().out.splitlines()
    assert sound == "The configuration is sound."
    assert {line.strip().partition(":")[0] for line in named} == softer.keys()


def test_each_test_that_the_security_page_names_is_there():
    named = {name for names in re.findall(r"Tests:([^.]+)\.", SECURITY.read_text()) for name in re.findall(r"`(\w+)`", names)}
    sources = [path.read_text() for path in (ROOT / "tests").glob("test_*.py")]
    for folder in ("services", "shared"):
        sources += [path.read_text() for path in (ROOT / folder).rglob("*.rs")]
    tests = {name for text in sources for name in re.findall(r"\b(?:def|fn) (\w+)\(", text)}
    assert len(named) > 40 and not named - tests


def test_the_sample_is_the_one_that_is_printed():
    assert config("sample").ok().out == SAMPLE.read_text()


def test_all_faults_are_reported_at_once(tmp_path):
    file = tmp_path / "faulty.toml"
    file.write_text(
        "[mqtt]\n"
        'listen = "nowhere"\n'
        "max_packet_byte = 1\n"
        "[ingress]\n"
        "max_connections = -1\n"
        "[device_api]\n"
        "default_timeout_ms = 50\n"
        "max_timeout_ms = 10\n"
        "[nonsense]\n"
    )
    env = {"SWITCHBOARD_ROUTER__DRAIN_MS": "soon", "SWITCHBOARD_MQTT__LISTENN": "127.0.0.1:1"}
    ran = config("check", "--config", file, "--set", "log.format=loud", "--set", "nats", env=env)
    assert ran.code == 2
    said = ran.out + ran.err
    for line, setting in enumerate(["mqtt.listen", "mqtt.max_packet_byte", None, "ingress.max_connections"], start=2):
        if setting:
            assert f"{file}:{line}: {setting}" in said, said
    for fault in [
        "device_api.default_timeout_ms",
        "nonsense",
        "environment SWITCHBOARD_ROUTER__DRAIN_MS",
        "environment SWITCHBOARD_MQTT__LISTENN",
        "flag --set log.format",
        "KEY=VALUE",
    ]:
        assert fault in said, f"{fault}: {said}"


def test_print_says_what_is_in_force_and_from_where(tmp_path):
    file = tmp_path / "some.toml"
    file.write_text("[mqtt]\nmax_keep_alive_s = 77\n")
    env = {"SWITCHBOARD_NATS__PASSWORD": "no_log_may_say_this", "SWITCHBOARD_NATS__USER": "somebody"}
    printed = config("print", "--config", file, "--set", "router.drain_ms=123", env=env).ok().out
    for setting, source in [
        ("max_keep_alive_s = 77", f"{file}:2"),
        ("drain_ms = 123", "flag --set router.drain_ms"),
        ('user = "somebody"', "environment SWITCHBOARD_NATS__USER"),
    ]:
        lines = printed.splitlines()
        index = next(index for index, line in enumerate(lines) if setting in line)
        assert source in "\n".join(lines[max(0, index - 1) : index + 1]), printed
    assert "no_log_may_say_this" not in printed


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_service_refuses_a_faulty_configuration(program, tmp_path):
    ran = run(built(program), "--set", "mqtt.listen=nowhere", "--set", "router.unknown=1", "--config", tmp_path / "none.toml")
    assert ran.code == 2
    for fault in ["mqtt.listen", "router.unknown", "none.toml"]:
        assert fault in ran.err


@pytest.mark.parametrize("program", ["switchboard", *PROGRAMS])
def test_help_and_version(program):
    assert "--help" in run(built(program), "--help").ok().out
    assert run(built(program), "--version").ok().out.startswith(program)


def test_a_change_is_said_by_who_takes_it_over_and_who_has_to_be_started_again(tmp_path):
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text("[router]\ndrain_ms = 1\n")
    new.write_text(
        "[router]\ndrain_ms = 2\n[ingress]\nlease_ms = 4000\ncall_burst_per_device = 5\n[mqtt]\nmax_packet_bytes = 4096\n"
    )
    said = config("check", "--config", new, "--against", old).ok().out.splitlines()
    assert said == [
        "The configuration is sound.",
        "ingress has to be started again for: ingress.lease_ms, mqtt.max_packet_bytes",
        "ingress takes over: ingress.call_burst_per_device",
        "router has to be started again for: ingress.lease_ms",
        "router takes over: router.drain_ms",
        "api has to be started again for: ingress.lease_ms",
    ]
    assert config("check", "--config", new, "--against", new).ok().out.splitlines()[1:] == ["Nothing has changed."]
    new.write_text("[router]\ndrain_ms = 2\n[mqtt]\nmax_packet_bytes = 1\n")
    assert config("check", "--config", new, "--against", old).code == 2
