"""Do more nodes, authorizers and routers share the work, and does a call take no more messages for it?"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.devices import PahoV5
from harness.devices.device import echo

CALLS = 40


@pytest.fixture
def cluster(new_cluster):
    return new_cluster()


def test_one_two_and_four_of_each(cluster, device):
    messages_a_call = {}
    for size in (1, 2, 4):
        while len(cluster.nodes) < size:
            cluster.add_node()
            cluster.add_router()
            cluster.add_authorizer()
        families = [cluster.accounts.family() for _ in cluster.nodes]
        for family, node in zip(families, cluster.nodes, strict=True):
            device(PahoV5, family.b).connect(node).become_callable(echo)
        # From every node to every node.
        callers = [(device(PahoV5, family.a).connect(node), family.b) for family in families for node in cluster.nodes]
        before = shares(cluster)
        sent = cluster.nats.messages()

        def call(caller_and_target):
            caller, target = caller_and_target
            return [caller.send_msg(target, str(number)).text() for number in range(CALLS)]

        with ThreadPoolExecutor(len(callers)) as pool:
            answers = list(pool.map(call, callers))
        assert answers == [[str(number) for number in range(CALLS)]] * len(callers)
        calls = CALLS * len(callers)
        messages_a_call[size] = (cluster.nats.messages() - sent) / calls
        for service, count in shares(cluster).items():
            done = count - before.get(service, 0)
            kind = service.rpartition("-")[0]
            # Each call passes one node as caller's and one as target's, one authorizer and one router.
            fair = calls / size
            assert fair / 4 < done < fair * 4, (kind, service, done, fair)
    # Ingress asks, the authorizer forwards, the router asks, the target's node answers, the router answers.
    assert all(5 <= count < 6.5 for count in messages_a_call.values()), messages_a_call


def shares(cluster) -> dict[str, float]:
    """How much each service has done so far."""
    counters = {
        "ingress": "switchboard_calls_total",
        "authorizer": "switchboard_authorizer_decisions_total",
        "router": "switchboard_router_calls_total",
    }
    return {it.name: it.admin.value(counters[it.name.rpartition("-")[0]]) for it in cluster.services}
