"""Does a client that is generated from the API's description call a device? In Python and in TypeScript."""

import json
import sys

import pytest
from harness.apps import add_app
from harness.devices import PahoV5
from harness.processes import run
from harness.programs import ROOT, tool

DESCRIPTION = ROOT / "services" / "api" / "openapi.json"
DRIVERS = ROOT / "tests" / "clients" / "openapi"
NODE_MODULES = DRIVERS / "node_modules"


def python(folder):
    """A package `client` beside the driver, by openapi-python-client."""
    env = {"PYTHONPATH": str(ROOT / ".tools" / "openapi")}
    config = folder / "config.json"
    # As it comes: no formatter goes over it.
    config.write_text('{"post_hooks": []}')
    generate = ["generate", "--path", DESCRIPTION, "--meta", "none", "--output-path", folder / "client", "--config", config]
    generated = run(sys.executable, "-m", "openapi_python_client", *generate, "--fail-on-warning", env=env).ok()
    assert "Warning" not in generated.out
    (folder / "driver.py").write_text((DRIVERS / "driver.py").read_text())
    return [sys.executable, folder / "driver.py"], env


def typescript(folder):
    """Types beside the driver, by openapi-typescript; the driver has to fit them."""
    run(tool("node"), NODE_MODULES / "openapi-typescript" / "bin" / "cli.js", DESCRIPTION, "-o", folder / "api.d.ts").ok()
    (folder / "node_modules").symlink_to(NODE_MODULES)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "globals.d.ts").write_text("declare const process: { argv: string[]; env: Record<string, string> };\n")
    (folder / "driver.ts").write_text((DRIVERS / "driver.ts").read_text())
    flags = ["--strict", "--noEmit", "--skipLibCheck", "--target", "esnext", "--module", "nodenext", "--allowImportingTsExtensions"]
    fits = run(tool("node"), NODE_MODULES / "typescript" / "bin" / "tsc", *flags, folder / "driver.ts", folder / "globals.d.ts")
    assert fits.code == 0, fits.out
    return [tool("node"), folder / "driver.ts"], {}


@pytest.mark.parametrize("generated", [python, typescript])
def test_a_generated_client_calls_a_device(shared_cluster, node, family, device, tmp_path, generated):
    app = add_app(shared_cluster.accounts, "--customer", family.customer)
    device(PahoV5, family.a).connect(node).become_callable(lambda call: call.answer(json.dumps(json.loads(call.text))))
    driver, env = generated(tmp_path)
    url = f"http://127.0.0.1:{shared_cluster.apis[0].port}"
    told = [json.loads(line) for line in run(*driver, url, family.a.id, env=env | {"KEY": app.key}).ok().out.splitlines()]
    assert told == [
        {"status": 200, "answer": {"method": "blink", "params": {"times": 3}}},
        {"status": 422, "field": "timeout", "seen": "never"},
        {"status": 200, "id": family.a.id, "online": True},
    ]
