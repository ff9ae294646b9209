#!/usr/bin/env python3
"""What do the Grafana boards show? This writes them as the JSON files beside it; with --check it only says whether they are up to date."""

import json
import sys
from pathlib import Path

from panels import ORANGE, GREEN, PROCESS, RED, YELLOW, Json, Panel, Query, board, each, graph, heatmap, increase, quantile, quantiles
from panels import rate, rates, share_of, stat, states, table, total

# The SLOs; their objectives and their burn rates are in deploy/prometheus/recording.yaml.
REACHED_OUTCOMES = 'outcome=~"answered|delivered|timed_out|lost|unavailable"'
MISSED_OUTCOMES = 'outcome=~"timed_out|lost|unavailable"'
REACHED, MISSED = f'method="sendMsg",{REACHED_OUTCOMES}', f'method="sendMsg",{MISSED_OUTCOMES}'
SERVED = share_of(increase("switchboard_calls_total", 'outcome="unavailable"'), increase("switchboard_calls_total"))
ANSWERED = share_of(increase("switchboard_calls_total", MISSED), increase("switchboard_calls_total", REACHED))
PROMPT = increase("switchboard_offline_seconds_bucket", 'le="0.05"') + " / " + increase("switchboard_offline_seconds_count")

# Alerts of the installations that were chosen; those about NATS have its namespace.
OURS = 'alertname=~"Switchboard.+",namespace=~"$namespace",release=~"$release"'

HOPS = {
    "caller waits": ("switchboard_call_seconds", 'method="sendMsg"'),
    "to the router, by way of an authorizer": ("switchboard_router_way_seconds", ""),
    "authorizer judges": ("switchboard_authorizer_answer_seconds", 'question="call"'),
    "router, all of it": ("switchboard_router_call_seconds", ""),
    "router waits for node": ("switchboard_router_deliver_seconds", ""),
    "target's node and target": ("switchboard_delivery_seconds", ""),
}

PROCESSES = table(
    "Processes",
    "Who runs, as which version, since when. A short uptime is a restart; two versions for longer than a rollout are a rollout that stopped.",
    "(time() - process_start_time_seconds{@}) * on (job, namespace, pod, instance) group_left (version) switchboard_build_info{@}",
    {"job": "Job", "namespace": "Namespace", "release": "Release", "zone": "Zone", "pod": "Pod", "instance": "Instance", "version": "Version", "Value": "Up since"},
    unit="dtdurations",
    width=18,
)

SETTINGS = graph(
    "Settings",
    "restart needed: settings that have changed in the file and wait for a restart of the process, named in its log. refused: a faulty file, which changes nothing.",
    Query("switchboard_config_restart_needed{@}", f"restart needed: {PROCESS}"),
    Query(rate("switchboard_config_reloads_total", "result"), "reload {{result}}"), width=6,
)  # fmt: skip


def hop_latency(share: float) -> Panel:
    title = f"Latency by hop, p{share * 100:g}"
    text = "The hop whose own line rises is the slow one; a way that is long though authorizers judge quickly is their queue, NATS, or a decision point outside. Of the calls that got so far."
    return graph(title, text, *(Query(quantile(share, *hop), name) for name, hop in HOPS.items()), unit="s")


def burn(errors: str, budget: float, name: str) -> Query:
    """What deploy/prometheus/recording.yaml records, over the share of errors that the objective leaves."""
    return Query(f'job:{errors}:ratio_rate1h{{job=~"$job",namespace=~"$namespace"}} / {budget}', f"{name} {{{{job}}}}")


def connections() -> Panel:
    text = "Share of ingress.max_connections that each node has open: MQTT and HTTP. At 1 it refuses devices: add nodes before 0.85."
    query = Query("switchboard_connections{@} / switchboard_connections_max{@}", PROCESS)
    return graph("Connections in use", text, query, unit="percentunit", thresholds={0.85: ORANGE, 0.95: RED}, width=6)


def resources() -> list[Panel]:
    return [
        graph(
            "CPU", "Cores that each process uses. With one worker thread, the default, 1 is all there is: add copies before 0.8.",
            Query("rate(process_cpu_seconds_total{@}[$__rate_interval])", PROCESS), thresholds={0.8: ORANGE}, width=6,
        ),
        graph(
            "Memory", "Resident memory of each process. It follows sessions and claims; growth without them is a leak.",
            each("process_resident_memory_bytes"), unit="bytes", width=6,
        ),
        graph(
            "File descriptors in use", "Share of what the system allows the process. A connection takes one; at 1 nobody can connect.",
            Query("process_open_fds{@} / process_max_fds{@}", PROCESS), unit="percentunit", thresholds={0.85: ORANGE, 0.95: RED}, width=6,
        ),
        states(
            "Ready", "1 while /readyz of the process says yes. 0 for longer than a start or a stop: read /readyz, it gives the reason.",
            each("switchboard_ready"), width=6,
        ),
    ]  # fmt: skip


def nats() -> list[Panel]:
    return [
        states(
            "Connected to NATS", "1 while the process has its connection. 0: it can do nothing.",
            each("switchboard_bus_connected"), width=6,
        ),
        graph(
            "Questions over NATS by result",
            "no_responders: nobody of that service listens. expired: no reply in time. down, full, unsendable: NATS does not take it. And what services of one process hand each other without NATS, messages.",
            rates("switchboard_bus_asks_total", "result"),
            Query(rate("switchboard_bus_local_messages_total"), "handed over in memory"), unit="reqps", width=6,
        ),
        graph(
            "Questions in flight",
            "Questions that wait for a reply. A rise that does not end is a service behind that hangs; nats.max_pending_asks is the end.",
            each("switchboard_bus_asks_in_flight"), width=6,
        ),
        graph(
            "Lost touch",
            "Reconnects, full loads of a watched bucket, messages dropped by a full queue, replies too late. All are 0 in health but for the loads at a start.",
            Query(rate("switchboard_bus_reconnects_total"), "reconnects"),
            Query(rate("switchboard_bus_watch_reloads_total"), "bucket loads"),
            Query(rate("switchboard_bus_dropped_messages_total"), "messages dropped"),
            Query(rate("switchboard_bus_replies_unclaimed_total"), "replies too late"), unit="cps", width=6,
        ),
        *(
            graph(
                f"Time of questions at their askers, p{share * 100:g}",
                "Queues and NATS are in it, which whoever is asked does not see. authenticate: authorizers. claim, presence, compare: routers. store: JetStream.",
                Query(quantile(share, "switchboard_bus_ask_seconds", by="question"), "{{question}}"), unit="s", width=12,
            )
            for share in (0.5, 0.99)
        ),
    ]  # fmt: skip


def traces() -> list[Panel]:
    return [
        graph(
            "Spans", "What became of recorded spans, where traces are on. queue_full, cut_off: the collector did not take them in time; refused: it does not want them.",
            rates("switchboard_trace_spans_total", "result"), unit="cps", width=12,
        ),
        graph(
            "Calls over the limit of traces", "Calls that were not traced because traces.max_calls_per_second was reached.",
            Query(rate("switchboard_trace_calls_over_limit_total"), "calls"), unit="reqps", width=12,
        ),
    ]  # fmt: skip


def overview() -> Json:
    return board(
        "switchboard-overview", "Switchboard: overview", "For the person on call: is it well, and if not, where to look.", "switchboard_bus_connected",
        {
            "Now": [
                stat(
                    "Alerts firing",
                    "Alerts of the chosen installations that fire. Which they are stands at the end of this page; what to do, in the runbook.",
                    Query(f'count(ALERTS{{alertstate="firing",{OURS}}}) or vector(0)', instant=True), thresholds={0: GREEN, 1: RED}, width=3,
                ),
                stat(
                    "Requests", "Requests of devices a second, all methods and outcomes.",
                    Query(rate("switchboard_calls_total")), unit="reqps", width=3,
                ),
                stat(
                    "Served", "Share of requests in the chosen time that did not end as Unavailable. Objective: 99.9 %.",
                    Query(SERVED, instant=True), unit="percentunit", decimals=3, thresholds={0: RED, 0.999: GREEN}, width=3,
                ),
                stat(
                    "Answered in time",
                    "Share of calls to a device that was there which it answered in time. Objective: 99 %. Devices that do not answer count too.",
                    Query(ANSWERED, instant=True), unit="percentunit", decimals=2, thresholds={0: RED, 0.99: GREEN}, width=3,
                ),
                stat(
                    "Offline within 50 ms", "Share of \"No active connection\" answers that took at most 50 ms. Objective: 99 %.",
                    Query(PROMPT, instant=True), unit="percentunit", decimals=2, thresholds={0: RED, 0.99: GREEN}, width=3,
                ),
                stat("Devices", "Devices that nodes know: connected, or not silent for long.", Query(total("switchboard_visitors")), width=3),
                stat("Callable", "Devices that a call reaches: their claim stands.", Query(total("switchboard_claims_held")), width=3),
                stat(
                    "Ready", "Processes that are ready, of each service. 1: nobody could take over. 0: nothing works.",
                    Query("sum by (job) (switchboard_ready{@})", "{{job}}"), thresholds={0: RED, 1: ORANGE, 2: GREEN}, width=3,
                ),
            ],
            "Calls": [
                graph(
                    "Requests by outcome",
                    "Green is well; blue, purple and grey are the callers' own business; yellow to red is ours or the targets'.",
                    rates("switchboard_calls_total", "outcome"), stacked=True, unit="reqps", width=12,
                ),
                graph(
                    "Calls that failed",
                    "Calls without an answer, by outcome. Unavailable: a service or NATS. Busy: a limit, see below. TimedOut, Lost: the target, or the way to it.",
                    rates("switchboard_calls_total", "outcome", 'outcome=~"busy|timed_out|lost|unavailable"'), unit="reqps",
                ),
                graph(
                    "Error budget burn, 1 h",
                    "How many times faster than allowed the error budget of each SLO is spent, by devices' requests and by applications'. Above 1 it will not last; at 14.4 two percent of a month go in an hour.",
                    burn("switchboard_calls_unserved", 0.001, "served"),
                    burn("switchboard_calls_unanswered", 0.01, "answered in time"),
                    burn("switchboard_offline_answers_late", 0.01, "offline within 50 ms"),
                    thresholds={1: YELLOW, 14.4: RED}, width=4,
                ),
            ],
            "Latency": [
                hop_latency(0.5), hop_latency(0.95), hop_latency(0.99),
                graph(
                    "Whole calls", "From a device's sendMsg to its answer at its node. Targets' own time is in it.",
                    *quantiles("switchboard_call_seconds", 'method="sendMsg"'), unit="s",
                ),
                graph(
                    "Offline answers",
                    "How long callers who do not want to wait are left without the answer that the target is not there. The objective is 50 ms for 99 %.",
                    *quantiles("switchboard_offline_seconds"), unit="s", thresholds={0.05: RED},
                ),
                heatmap(
                    "Whole calls, all of them", "Two bands are two kinds of targets; a band that moves up is the system.",
                    "switchboard_call_seconds", 'method="sendMsg"',
                ),
            ],
            "Devices": [
                graph(
                    "Devices by protocol",
                    "A step down of one protocol is a node or a listener that went; a sawtooth is devices that come and go.",
                    Query(total("switchboard_visitors", "protocol"), "{{protocol}}"), stacked=True, width=6,
                ),
                graph(
                    "Devices by node", "Should be even. A node far below the others is new, or devices cannot reach it.",
                    Query(total("switchboard_visitors", "pod, instance"), PROCESS), stacked=True, width=6,
                ),
                graph(
                    "Callable devices", "Claims that nodes hold, and claims that routers know. They should be the same but for a moment.",
                    Query(total("switchboard_claims_held"), "held by nodes"),
                    Query("max(switchboard_router_claims{@})", "known to routers"), width=6,
                ),
                graph(
                    "Connection attempts by result",
                    "unavailable: no authorizer or no NATS. unknown_token: tokens changed, or somebody tries. limit: a node is full.",
                    rates("switchboard_connects_total", "result"), unit="cps", width=6,
                ),
            ],
            "Limits and saturation": [
                graph(
                    "Limits hit",
                    "Which named limit refused something. Node-wide ones (connections, pending_asks, sessions, exchanges, observers) mean: add nodes.",
                    rates("switchboard_limits_hit_total", "limit"),
                    Query(rate("switchboard_router_limits_hit_total", "limit"), "router {{limit}}"), unit="cps", width=6,
                ),
                connections(),
                graph(
                    "Calls in flight at routers",
                    "Calls that wait for their target. It follows load and targets' slowness; router.max_calls_in_flight is the end.",
                    each("switchboard_router_calls_in_flight"), width=6,
                ),
                graph(
                    "Telemetry and attributes", "Messages handed to NATS; failed ones were not acknowledged to their device.",
                    rates("switchboard_uplinks_total", "result"), unit="cps", width=6,
                ),
                *resources(),
            ],
            "Applications": [
                graph(
                    "Calls of applications", "By outcome. denied: keys that have ended, or may less than they try. busy: their limits, or devices'.",
                    rates("switchboard_api_calls_total", "outcome"), stacked=True, unit="reqps", width=6,
                ),
                graph(
                    "Time of an application's call", "From the request to its outcome. The device's own time is in it.",
                    *quantiles("switchboard_api_call_seconds"), unit="s", width=6,
                ),
                graph(
                    "Applications refused",
                    "no key: none was shown, or none that lives. app_call_rate, app_in_flight: one asks more than its limits. api_connections: add copies.",
                    Query(rate("switchboard_api_keys_refused_total"), "no key"),
                    rates("switchboard_api_limits_hit_total", "limit"), unit="cps", width=6,
                ),
                graph(
                    "Connections of applications", "Of each copy; api.max_connections is the end.",
                    each("switchboard_api_connections"), width=6,
                ),
                graph(
                    "Listeners to events", "Of each copy; api.max_listeners is the end, and half of it one application's.",
                    each("switchboard_api_listeners"), width=8,
                ),
                graph(
                    "Events told",
                    "overruns: read too slowly, and cut off. resyncs: told all anew, after an outage of NATS, or since what a key reaches has changed.",
                    Query(rate("switchboard_api_events_total"), "events"),
                    Query(rate("switchboard_api_overruns_total"), "overruns"),
                    Query(rate("switchboard_api_resyncs_total"), "resyncs"), unit="cps", width=8,
                ),
                graph(
                    "Answers after the time, and keys used again",
                    "late: the application may still read it. replayed: a client asked twice. dead: a copy of the API was lost under a call.",
                    Query(rate("switchboard_api_late_answers_total"), "late"),
                    rates("switchboard_api_idempotency_total", "result"), unit="cps", width=8,
                ),
            ],
            "NATS and what is known": [
                *nats(),
                graph(
                    "Nodes seen by routers",
                    "Nodes with a lease, as each router sees them. Routers must agree, and with the number of nodes ready.",
                    each("switchboard_router_nodes"), Query("count(switchboard_connections_max{@})", "nodes that run"),
                ),
                graph(
                    "Age of what is known",
                    "Seconds since the registry (authorizers) and the claims (routers) were known to be up to date. A few are well; a rise is a process that NATS does not reach.",
                    each("switchboard_authorizer_registry_age_seconds", "registry {{instance}}"),
                    each("switchboard_router_claims_age_seconds", "claims {{instance}}"), unit="s", thresholds={30: RED},
                ),
                graph(
                    "Allowed calls that no router took", "Above 0: no router runs, or none is connected.",
                    Query(rate("switchboard_authorizer_bounces_total"), "bounces"), unit="cps",
                ),
            ],
            "Identities of nodes, where there is switchboard-identity": [
                graph(
                    "Nodes that joined, and who was refused", "wrong_secret: a node with an old secret, or somebody who tries. no_key: a node of an older version.",
                    rates("switchboard_identity_answers_total", "result"), unit="cps", width=12,
                ),
                graph(
                    "Time that NATS waits for it", "A connection is open meanwhile, and given up by NATS after two seconds.",
                    *quantiles("switchboard_identity_answer_seconds"), unit="s", width=12,
                ),
            ],
            "Processes": [
                PROCESSES,
                SETTINGS,
                table(
                    "Alerts that fire or are about to", "Pending ones have not lasted long enough yet. The runbook has an entry for each.",
                    f"ALERTS{{{OURS}}}",
                    {"alertname": "Alert", "alertstate": "State", "severity": "Severity", "job": "Job", "namespace": "Namespace", "release": "Release",
                     "zone": "Zone", "instance": "Instance", "limit": "Limit", "stream_name": "Stream"}, width=24, height=6,
                ),
            ],
        },
    )  # fmt: skip


def ingress() -> Json:
    return board(
        "switchboard-ingress", "Switchboard: ingress", "The nodes that devices connect to: MQTT, HTTP, CoAP, TLS.", "switchboard_sessions",
        {
            "Requests of devices": [
                graph(
                    "Requests by outcome", "Choose one node above: one that differs from the others has a trouble of its own.",
                    rates("switchboard_calls_total", "outcome"), stacked=True, unit="reqps",
                ),
                graph(
                    "Requests by method", "What devices ask. other: methods that there are not.",
                    rates("switchboard_calls_total", "method"), stacked=True, unit="reqps",
                ),
                graph(
                    "Unavailable by node", "All nodes: authorizer, router or NATS. One node: its own connection to NATS.",
                    Query(rate("switchboard_calls_total", "pod, instance", 'outcome="unavailable"'), PROCESS), unit="reqps", thresholds={0.1: RED},
                ),
                graph(
                    "Time of sendMsg", "From the request to its answer; the target's own time is in it.",
                    *quantiles("switchboard_call_seconds", 'method="sendMsg"'), unit="s", width=6,
                ),
                graph(
                    "Time of getDevices", "From the request to its answer. It asks an authorizer, and routers for who is online.",
                    *quantiles("switchboard_call_seconds", 'method="getDevices"'), unit="s", width=6,
                ),
                graph(
                    "Time of a delivery",
                    "From the call's arrival at the target's node to its end there: nearly all of it is the target's.",
                    *quantiles("switchboard_delivery_seconds"), unit="s", width=6,
                ),
                graph(
                    "Time of offline answers", "How long a caller who does not want to wait is left without \"No active connection\".",
                    *quantiles("switchboard_offline_seconds"), unit="s", thresholds={0.05: RED}, width=6,
                ),
                heatmap(
                    "sendMsg, all of them", "Two bands are two kinds of targets; a band that moves up is the system.",
                    "switchboard_call_seconds", 'method="sendMsg"', width=12,
                ),
                heatmap(
                    "Deliveries, all of them", "What targets take. A band at the callers' timeout is targets that never answer.",
                    "switchboard_delivery_seconds", width=12,
                ),
            ],
            "Sessions and claims": [
                graph(
                    "Devices by protocol", "Devices that a node knows: connected, or not silent for long.",
                    Query(total("switchboard_visitors", "protocol"), "{{protocol}}"), stacked=True, width=6,
                ),
                graph(
                    "Sessions by protocol", "Devices that can be called, by what they speak.",
                    Query(total("switchboard_sessions", "protocol"), "{{protocol}}"), stacked=True, width=6,
                ),
                graph(
                    "Devices by node", "Should be even over the nodes.",
                    Query(total("switchboard_visitors", "pod, instance"), PROCESS), stacked=True, width=6,
                ),
                graph(
                    "Connection attempts", "By result; over HTTP and CoAP, a device that was not known any more. unavailable: no authorizer or no NATS. malformed: no MQTT, or too slow.",
                    rates("switchboard_connects_total", "result"), unit="cps", width=6,
                ),
                graph(
                    "Sessions ended from here",
                    "takeover: the device became callable elsewhere; the same one for ever is two devices with one token, which are slowed. revocation: the registry changed.",
                    Query(rate("switchboard_takeovers_total"), "takeovers"),
                    Query(rate("switchboard_claims_delayed_total"), "delayed by a fight"),
                    Query(rate("switchboard_revocations_total"), "revocations"), unit="cps", width=6,
                ),
                graph(
                    "Sent away",
                    "To other nodes, by why: the node ends, is evacuated, in maintenance, or had more than its part. left: those that have yet to go.",
                    rates("switchboard_shed_total", "reason"),
                    Query(total("switchboard_shed_left"), "left"), unit="cps", width=6,
                ),
                graph("Claims held", "Callable devices by node.", each("switchboard_claims_held"), stacked=True),
                graph(
                    "Time to write a claim", "What a device waits for its SUBACK. It is JetStream's time: look at NATS when it rises.",
                    *quantiles("switchboard_claim_seconds"), unit="s", thresholds={1: RED},
                ),
                graph(
                    "Claims not written", "Devices that could not become callable, above 0: JetStream has no leader, or is slow. lacked: a router did not know them, and they are written again, as after an outage.",
                    Query(rate("switchboard_claims_failed_total"), "failed"),
                    Query(rate("switchboard_claims_lacking_total", "pod, instance"), "a router lacked, {{instance}}"), unit="cps",
                ),
            ],
            "Limits": [
                graph(
                    "Limits hit", "By limit; the runbook says which setting it is and whether it is one device's or the node's.",
                    rates("switchboard_limits_hit_total", "limit"), unit="cps", width=6,
                ),
                connections(),
                graph(
                    "Worst offenders", "How often a second the one device or customer that did it most hit limits, or came in, at one node. /offenders on its admin port has names.",
                    Query("max by (pod, instance, offence, by) (switchboard_offender_per_second{@})", "{{offence}} of a {{by}} at {{instance}}"), unit="cps", width=6,
                ),
                graph(
                    "Answers nobody heard", "Answers whose caller had no subscription for them: the caller's fault.",
                    Query(rate("switchboard_answers_unheard_total"), "unheard"), unit="cps", width=6,
                ),
                graph(
                    "Messages dropped", "MQTT messages that came to nothing, by reason; the log has device and topic.",
                    rates("switchboard_messages_dropped_total", "reason"), unit="cps", width=6,
                ),
                graph(
                    "Telemetry and attributes", "failed: NATS did not take it, and the device was told so or got no acknowledgement.",
                    rates("switchboard_uplinks_total", "result"), unit="cps", width=6,
                ),
            ],
            "HTTP and TLS": [
                graph(
                    "HTTP by route", "Polls that end are requests too: devices waiting make a steady base.",
                    rates("switchboard_http_requests_total", "route"), stacked=True, unit="reqps", width=6,
                ),
                graph(
                    "HTTP by status",
                    "401 unknown token, 408 poll without a call, 409 a newer session, 429 a limit, 503 a service is missing.",
                    rates("switchboard_http_requests_total", "status"), stacked=True, unit="reqps", width=6,
                ),
                graph(
                    "Polls that wait", "Connections kept open by polls, by node.",
                    each("switchboard_http_polls"), stacked=True, width=6,
                ),
                graph(
                    "TLS",
                    "Handshakes by result, and certificate files read again. refused: the new files make no sense, the old certificate runs out one day.",
                    Query(rate("switchboard_tls_handshakes_total", "result"), "handshake {{result}}"),
                    Query(rate("switchboard_tls_reloads_total", "result"), "reload {{result}}"), unit="cps", width=6,
                ),
                graph(
                    "Certificate", "How long the certificate for devices is good for, by node: renew it before it is a week.",
                    Query("switchboard_tls_certificate_expiry_timestamp_seconds{@} - time()", PROCESS), unit="s", width=6,
                ),
            ],
            "CoAP": [
                graph(
                    "Messages received", "By kind. foreign, malformed: not CoAP; much of it is a scan or a flood.",
                    rates("switchboard_coap_messages_received_total", "kind"), unit="pps", width=6,
                ),
                graph(
                    "Responses by code", "4.01 unknown token, 4.29 a limit, 5.03 a service is missing.",
                    rates("switchboard_coap_responses_total", "code"), unit="pps", width=6,
                ),
                graph(
                    "Calls to observers",
                    "notifications: calls sent. rejected and given up end an observation: the device has gone or its address changed.",
                    Query(rate("switchboard_coap_notifications_total"), "notifications"),
                    Query(rate("switchboard_coap_notifications_rejected_total"), "rejected"),
                    Query(rate("switchboard_coap_given_up_total"), "given up"), unit="pps", width=6,
                ),
                graph(
                    "Datagrams lost",
                    "retransmissions: ours, unacknowledged in time. duplicates: theirs, whose answer got lost or was slow. unsent: the socket did not take it.",
                    Query(rate("switchboard_coap_retransmissions_total"), "retransmissions"),
                    Query(rate("switchboard_coap_duplicates_total"), "duplicates"),
                    Query(rate("switchboard_coap_unsent_total"), "unsent"), unit="pps", width=6,
                ),
                graph(
                    "Observers", "Devices that observe their calls, by node.",
                    each("switchboard_coap_observers"), stacked=True, width=6,
                ),
                graph(
                    "Requests remembered", "For deduplication; each lasts four minutes. coap.max_exchanges is the end.",
                    each("switchboard_coap_exchanges"), stacked=True, width=6,
                ),
                graph(
                    "Waiting for an acknowledgement",
                    "Confirmable messages under way. A rise is devices that are gone, or a network that loses.",
                    each("switchboard_coap_unacknowledged"), stacked=True, width=6,
                ),
                graph(
                    "Bodies in transfer", "Block by block; coap.max_block_transfers is the end.",
                    each("switchboard_coap_block_transfers"), stacked=True, width=6,
                ),
            ],
            "NATS": nats(),
            "Traces": traces(),
            "Processes": [*resources(), PROCESSES, SETTINGS],
        },
    )  # fmt: skip


def authorizer() -> Json:
    return board(
        "switchboard-authorizer", "Switchboard: authorizer", "Who knows devices, and says which call is allowed.", "switchboard_authorizer_registry_devices",
        {
            "Questions": [
                graph(
                    "Calls judged",
                    "not_allowed: another customer's device. unknown_target, unknown_caller: no such device. external: permitted, but not by the tenant's external decision point. expired: it came too late, the process or NATS is behind. stale: the registry may be old. unticketed: no word of an authorizer.",
                    rates("switchboard_authorizer_decisions_total", "result"), stacked=True, unit="reqps", width=6,
                ),
                graph(
                    "Credentials",
                    "refused: nobody has that token. Many after a rotation are devices with old tokens; many at all times are somebody who tries.",
                    rates("switchboard_authorizer_authentications_total", "result"), stacked=True, unit="reqps", width=6,
                ),
                graph(
                    "getDevices", "By result. unavailable: no router said who is online. busy: a customer asks faster than he may. expired: it waited for too long.",
                    rates("switchboard_authorizer_lists_total", "result"), stacked=True, unit="reqps", width=6,
                ),
                graph(
                    "Allowed calls that no router took",
                    "Above 0: no router runs, or none is connected. Their callers read \"Internal server error!\".",
                    Query(rate("switchboard_authorizer_bounces_total", "pod, instance"), PROCESS), unit="reqps", thresholds={0.1: RED}, width=6,
                ),
            ],
            "Time": [
                graph(
                    "Time of a question, p99",
                    "From its arrival to its end here. calls and credentials are looked up in memory: above a millisecond the process has no CPU.",
                    Query(quantile(0.99, "switchboard_authorizer_answer_seconds", by="question"), "{{question}}"), unit="s",
                ),
                graph(
                    "Time to judge a call", "Memory alone: it should be at the lowest bucket, 0.1 ms.",
                    *quantiles("switchboard_authorizer_answer_seconds", 'question="call"'), unit="s",
                ),
                heatmap(
                    "All questions", "A second band is getDevices, which asks routers who is online.",
                    "switchboard_authorizer_answer_seconds",
                ),
            ],
            "Registry": [
                graph(
                    "Devices", "As each authorizer knows them: all must agree but for a moment.",
                    each("switchboard_authorizer_registry_devices"), width=6,
                ),
                graph(
                    "Customers and tenants", "As each authorizer knows them.",
                    each("switchboard_authorizer_registry_customers", "customers {{instance}}"),
                    each("switchboard_authorizer_registry_tenants", "tenants {{instance}}"), width=6,
                ),
                graph(
                    "Age of the registry",
                    "A change made longer ago than this is known. From 2 s on the process decides nothing: it does not hear NATS, or loads the registry.",
                    each("switchboard_authorizer_registry_age_seconds"), unit="s", thresholds={2: RED}, width=6,
                ),
                graph(
                    "Changes told to nodes", "Devices changed: their sessions are checked. A burst is an import.",
                    Query(rate("switchboard_authorizer_device_events_total"), "changed devices"), unit="cps", width=6,
                ),
            ],
            "Policies": [
                graph(
                    "Tenants with policies", "All others are judged by the built-in rule. Unread: the last good policies stay in force.",
                    each("switchboard_authorizer_policy_sets", "in force {{instance}}"),
                    each("switchboard_authorizer_policy_sets_unread", "unread {{instance}}"), width=12,
                ),
                graph(
                    "Decisions by policies", "From memory, or evaluated. Many evaluations long after a change: policies read names or free numbers.",
                    Query(rate("switchboard_authorizer_policy_decisions_total", by="by"), "{{by}}"), unit="cps", width=12,
                ),
                graph(
                    "Decisions by version", "Of the tenants' sets: an old one that goes on deciding has not been replaced everywhere.",
                    Query(rate("switchboard_authorizer_policy_decisions_total", by="version"), "version {{version}}"), unit="cps", width=12,
                ),
                graph(
                    "Denials", "By policies or the built-in rule. concealed: the same, and the caller is told that there is no such device.",
                    rates("switchboard_authorizer_decisions_total", "result", 'result=~"not_allowed|concealed"'), unit="cps", width=12,
                ),
                graph(
                    "Decisions from memory", "Of those by policies. Below nine tenths for long: policies read names or free numbers.",
                    Query(
                        "1 - " + rate("switchboard_authorizer_policy_decisions_total", matchers='by="evaluation"')
                        + " / clamp_min(" + rate("switchboard_authorizer_policy_decisions_total") + ", 1e-9)", "from memory",
                    ), unit="percentunit", width=12,
                ),
                graph(
                    "What shadows would decide otherwise", "allows: now denied. denies: now allowed. The authorizers' logs name some of them.",
                    Query(rate("switchboard_authorizer_policy_shadow_differences_total", by="shadow"), "{{shadow}}"), unit="cps", width=12,
                ),
            ],
            "External decision points": [
                graph(
                    "Decisions from outside", "Calls that policies permit, and of which a tenant's decision point is asked. remembered: it has answered before. external_denied: it said no; the others deny without an answer, external_open without asking.",
                    rates("switchboard_authorizer_external_decisions_total", "result"), stacked=True, unit="reqps", width=12,
                ),
                graph(
                    "Time of external decisions", "From the question to the answer, or to the end of its time. The call waits as long.",
                    *quantiles("switchboard_authorizer_external_seconds"), unit="s", width=12,
                ),
            ],
            "Audit": [
                graph(
                    "Denials recorded", "left_out: above the tenant's rate; the next record counts them. dropped: too many waited. failed: JetStream took none.",
                    rates("switchboard_authorizer_audit_records_total", "result"), stacked=True, unit="reqps", width=12,
                ),
            ],
            "NATS": nats(),
            "Traces": traces(),
            "Processes": [*resources(), PROCESSES, SETTINGS],
        },
    )  # fmt: skip


def router() -> Json:
    return board(
        "switchboard-router", "Switchboard: router", "Who finds a call's target, and brings the answer back.", "switchboard_router_nodes",
        {
            "Calls": [
                graph(
                    "Calls by outcome", "As routers say it to callers. unavailable: a node or the claim store failed.",
                    rates("switchboard_router_calls_total", "outcome"), stacked=True, unit="reqps",
                ),
                graph(
                    "Calls in flight",
                    "Calls in the routers' hands. It follows load and targets' slowness; router.max_calls_in_flight is the end. waiting: for a target to connect.",
                    each("switchboard_router_calls_in_flight"),
                    each("switchboard_router_calls_waiting", "waiting {{instance}}"),
                ),
                graph(
                    "Waits that ended here",
                    "cancelled: the caller went away. handed over: the router stopped, and another waits on. judged again: before its delivery.",
                    Query(rate("switchboard_router_calls_cancelled_total"), "cancelled"),
                    Query(rate("switchboard_router_calls_handed_over_total"), "handed over"),
                    Query(rate("switchboard_router_calls_judged_again_total", by="result"), "judged again: {{result}}"), unit="cps",
                ),
                graph(
                    "Limits hit and unreadable messages",
                    "router_in_flight, pending_asks: add routers. unreadable: copies of versions that do not fit.",
                    rates("switchboard_router_limits_hit_total", "limit"),
                    Query(rate("switchboard_router_unreadable_total"), "unreadable"), unit="cps",
                ),
            ],
            "Time": [
                graph(
                    "Time of a call on its way here", "From its caller's node, by way of an authorizer, whose queue is in it.",
                    *quantiles("switchboard_router_way_seconds"), unit="s", width=6,
                ),
                graph(
                    "Time of a call in the router", "The delivery is in it, hence the target's own time.",
                    *quantiles("switchboard_router_call_seconds"), unit="s", width=6,
                ),
                graph(
                    "Time of a delivery", "From the question to the target's node until its reply.",
                    *quantiles("switchboard_router_deliver_seconds"), unit="s", width=6,
                ),
                heatmap(
                    "Deliveries, all of them", "A band at the callers' timeout is targets that never answer.",
                    "switchboard_router_deliver_seconds", width=6,
                ),
            ],
            "Claims": [
                graph(
                    "Claims known", "Callable devices, as each router knows them: all must agree but for a moment.",
                    each("switchboard_router_claims"), width=6,
                ),
                graph(
                    "Nodes seen", "Nodes that have a lease. One that goes missing for a lease's time loses its claims.",
                    each("switchboard_router_nodes"), width=6,
                ),
                graph(
                    "Age of the claims",
                    "Seconds since the store was last heard; it speaks every second. A rise: the router does not hear NATS, and asks the store for each miss.",
                    each("switchboard_router_claims_age_seconds"), unit="s", thresholds={10: RED}, width=6,
                ),
                graph(
                    "Looked up in the store",
                    "Misses of the map, checked before Offline is said. found: the map lags. failed: JetStream, and callers read \"Internal server error!\".",
                    rates("switchboard_router_lookups_total", "result"), unit="reqps", width=6,
                ),
                graph(
                    "Claims asked for",
                    "By nodes. unavailable: JetStream. refused: tickets do not count; nodes ask authorizers for others. overtaken: an older session came back.",
                    rates("switchboard_router_claims_asked_total", "result"),
                    Query(rate("switchboard_router_takeovers_total"), "older session told"), unit="cps", width=8,
                ),
                graph(
                    "Nodes that differ",
                    "Renewals of a lease with other claims than the router knows: a moment after changes, or after an outage. For long: something does not mend.",
                    Query(rate("switchboard_router_differing_leases_total"), "differing"), unit="cps", width=8,
                ),
                graph(
                    "Deliveries refuted",
                    "The node said that the session is not there, or is reconnecting. Many: claims of sessions that ended are not removed.",
                    Query(rate("switchboard_router_refuted_deliveries_total"), "refuted"), unit="cps", width=8,
                ),
                graph(
                    "Claims removed",
                    "node_gone: a node died and its devices must come again. session_gone: one session, after a refuted delivery.",
                    rates("switchboard_router_stale_claims_removed_total", "reason"), unit="cps", width=12,
                ),
                graph(
                    "Ends kept",
                    "How devices were last there, when they go. failed: JetStream. dropped: more went than can wait; of these nothing is known.",
                    rates("switchboard_router_last_seen_total", "result"), unit="cps", width=12,
                ),
            ],
            "NATS": nats(),
            "Traces": traces(),
            "Processes": [*resources(), PROCESSES, SETTINGS],
        },
    )  # fmt: skip


def customer() -> Json:
    of = 'customer=~"$customer"'
    failed = f'{of},outcome=~"busy|timed_out|lost|unavailable"'
    calls, seconds = "switchboard_customer_calls_total", "switchboard_customer_call_seconds"
    missed = share_of(increase(calls, f"{of},{MISSED_OUTCOMES}"), increase(calls, f"{of},{REACHED_OUTCOMES}"))
    return board(
        "switchboard-customer", "Switchboard: one customer",
        "How is it for this customer? Of those alone that ingress.measured_customers names. Who floods and is not among them stands in the log and at /offenders.",
        calls,
        {
            "Now": [
                stat("Callable devices", "Devices of the customer that a call reaches.", Query(f"sum(switchboard_customer_sessions{{@,{of}}})"), width=6),
                stat("Calls", "Calls a second that its devices make.", Query(rate(calls, matchers=of)), unit="reqps", width=6),
                stat(
                    "Answered in time", "Share of its calls in the chosen time to a device that was there which it answered in time.",
                    Query(missed, instant=True), unit="percentunit", decimals=2, thresholds={0: RED, 0.99: GREEN}, width=6,
                ),
                stat(
                    "Limits hit", "Refusals a second. The customer's own limits, or those of its devices: below is which.",
                    Query(rate("switchboard_customer_limits_hit_total", matchers=of)), unit="cps", width=6,
                ),
            ],
            "Calls": [
                graph(
                    "Calls by outcome", "Of its devices as callers. offline, denied and unknown_device are its own business; busy is its limits; unavailable is ours.",
                    rates(calls, "outcome", of), stacked=True, unit="reqps", width=12,
                ),
                graph(
                    "Calls that failed", "Without an answer, by outcome. Beside those of all, on the overview: is it this customer alone?",
                    rates(calls, "outcome", failed), unit="reqps", width=12,
                ),
                graph(
                    "Time of its calls", "From a device's sendMsg to its answer at its node. Targets' own time is in it.",
                    *quantiles(seconds, of), unit="s", width=12,
                ),
                graph(
                    "Time of its calls beside everybody's, p95", "One line that rises alone is slow devices of the customer; both together are the system.",
                    Query(quantile(0.95, seconds, of), "this customer"),
                    Query(quantile(0.95, "switchboard_call_seconds", 'method="sendMsg"'), "everybody"), unit="s", width=12,
                ),
            ],
            "Devices and limits": [
                graph(
                    "Callable devices by node", "A step down on one node is that node; on all, the customer's own network.",
                    Query(f"sum by (pod, instance) (switchboard_customer_sessions{{@,{of}}})", PROCESS), stacked=True, width=12,
                ),
                graph(
                    "Limits hit", "customer_calls and its likes: the part of a node that one customer may have. call_rate, mailbox: single devices.",
                    rates("switchboard_customer_limits_hit_total", "limit", of), unit="cps", width=12,
                ),
            ],
        },
        of="customer",
    )  # fmt: skip


def of_nats(metric: str, matchers: str = "") -> str:
    """As prometheus-nats-exporter names it, with `-prefix=nats` as NATS' own chart starts it, or without."""
    return f'{{__name__=~"(nats|gnatsd|jetstream)_{metric}",@{matchers}}}'


LED = of_nats("stream_total_messages", ',is_stream_leader="true"')


def nats_servers() -> Json:
    def sum_of_rates(metric: str, name: str) -> Query:
        return Query(f"sum(rate({of_nats(metric)}[$__rate_interval]))", name)

    stream = "{{account}} {{stream_name}}"
    return board(
        "switchboard-nats", "Switchboard: NATS", "The servers in between, as prometheus-nats-exporter shows them (-varz -jsz=all).",
        '{__name__=~"(nats|gnatsd)_varz_connections"}',
        {
            "JetStream": [
                table(
                    "Who leads", "The leader of each stream; all copies of claims, devices and keys lean on theirs.",
                    f"group by (account, stream_name, stream_leader) ({LED})",
                    {"account": "Account", "stream_name": "Stream", "stream_leader": "Leader"},
                ),
                graph(
                    "Leaders of a stream within 15 minutes", "1 is quiet. More: a rollout of NATS, or a server that is too slow to keep its leadership.",
                    Query(
                        "count by (account, stream_name) (group by (account, stream_name, stream_leader) (last_over_time("
                        f"{LED}[15m])))", stream,
                    ), thresholds={2: ORANGE},
                ),
                graph(
                    "Replicas behind", "Messages that a stream's replica lacks of the furthest one. A rise that stays: the server's disk or network.",
                    Query(
                        f"max by (account, stream_name, server_name) (max by (account, stream_name) ({of_nats('stream_last_seq')})"
                        f" - on (account, stream_name) group_right () {of_nats('stream_last_seq')})", stream + " {{server_name}}",
                    ),
                ),
                graph(
                    "Written", "Messages a second by stream: claims follow devices that come and go, devices and policies follow the registry.",
                    Query(f"sum by (account, stream_name) (max by (account, stream_name) (rate({of_nats('stream_last_seq')}[$__rate_interval])))", stream),
                    unit="cps", width=12,
                ),
                graph(
                    "Bytes kept", "By stream. It follows devices; without room a stream takes nothing more.",
                    Query(f"max by (account, stream_name) ({of_nats('stream_total_bytes')})", stream), unit="bytes", width=12,
                ),
            ],
            "Servers": [
                graph("Connections", "By server. Even is well; a step down is a server that went.", Query(of_nats("varz_connections"), "{{server_id}}"), width=6),
                graph(
                    "Messages", "In and out of all servers.",
                    sum_of_rates("varz_in_msgs", "in"), sum_of_rates("varz_out_msgs", "out"), unit="cps", width=6,
                ),
                graph("CPU", "Percent of a core. Calls wait behind a server that has none left.", Query(of_nats("varz_cpu"), "{{server_id}}"), unit="percent", width=6),
                graph("Memory", "By server; it follows connections and what waits for them.", Query(of_nats("varz_mem"), "{{server_id}}"), unit="bytes", width=6),
                graph(
                    "Slow consumers", "Connections that the server cut since they did not read: that process has no CPU, or a queue that is too short.",
                    Query(f"increase({of_nats('varz_slow_consumers')}[$__rate_interval])", "{{server_id}}"), thresholds={1: RED}, width=12,
                ),
                graph("Subscriptions", "By server; each process has a handful.", Query(of_nats("varz_subscriptions"), "{{server_id}}"), width=12),
            ],
        },
    )  # fmt: skip


BOARDS = {"overview": overview, "ingress": ingress, "authorizer": authorizer, "router": router, "customer": customer, "nats": nats_servers}


def main() -> int:
    stale = []
    for name, made in BOARDS.items():
        file = Path(__file__).with_name(f"{name}.json")
        text = json.dumps(made(), indent=2, ensure_ascii=False) + "\n"
        if not file.exists() or file.read_text() != text:
            stale.append(file.name)
            if "--check" not in sys.argv:
                file.write_text(text)
    print(f"stale: {stale}" if stale else "all are up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
