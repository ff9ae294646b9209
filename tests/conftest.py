"""What is shared by the whole-system tests: one cluster for all that breaks nothing, and new ones for what does."""

from collections.abc import Callable, Iterator

import pytest
from harness.accounts import Family
from harness.apps import App, add_app
from harness.cluster import Cluster, Ingress
from harness.devices import Device
from harness.raw_http import RawHttp
from harness.raw_mqtt import RawMqtt
from harness.up import Up

# The tests that look back on everything the others did.
LAST = "test_secrets.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name == LAST)


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two of each service. Tests must leave it as they found it, and use devices of their own."""
    keeps = {"api.administration": "true"}
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), nodes=2, authorizers=2, routers=2, apis=2, settings=keeps)
    yield cluster
    cluster.stop()


@pytest.fixture
def node(shared_cluster: Cluster) -> Ingress:
    """One of the shared cluster's."""
    return shared_cluster.nodes[0]


@pytest.fixture
def http(node: Ingress) -> Iterator[RawHttp]:
    """A connection of this test's own."""
    with RawHttp(node.http_port) as connection:
        yield connection


@pytest.fixture
def new_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters that the test may break."""
    made: list[Cluster] = []

    def make(**options: object) -> Cluster:
        made.append(Cluster(tmp_path_factory.mktemp("cluster"), **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop()


@pytest.fixture
def family(shared_cluster: Cluster) -> Family:
    """A customer of this test alone, on the shared cluster."""
    return shared_cluster.accounts.family()


@pytest.fixture(scope="module")
def app(shared_cluster: Cluster) -> App:
    """An application of the only tenant, and its key."""
    # With a family its tenant is there.
    shared_cluster.accounts.family()
    return add_app(shared_cluster.accounts)


@pytest.fixture
def api(shared_cluster: Cluster) -> Iterator[RawHttp]:
    """A connection to the first API of the shared cluster."""
    with RawHttp(shared_cluster.apis[0].port) as connection:
        yield connection


@pytest.fixture
def device() -> Iterator[Callable[..., Device]]:
    """Makes devices that are closed after the test."""
    made: list[Device] = []

    def make(kind: type[Device], *arguments: object, **options: object) -> Device:
        made.append(kind(*arguments, **options))
        return made[-1]

    yield make
    for it in made:
        if it.is_connected and not it.ended.is_set():
            it.close()


@pytest.fixture
def raw() -> Iterator[Callable[..., RawMqtt]]:
    """Opens raw connections that are closed after the test."""
    made: list[RawMqtt] = []

    def make(port: int, version: int = 4, **options: str) -> RawMqtt:
        made.append(RawMqtt(port, version, **options))
        return made[-1]

    yield make
    for it in made:
        it.socket.close()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`switchboard up --demo`, as a newcomer has it, on ports of its own."""
    up = Up(tmp_path_factory.mktemp("demo"), "--demo", "--ephemeral")
    yield up.wait_ready()
    up.stop()
