#!/usr/bin/env python3
"""An external decision point: a device may make so many calls an hour, whatever policies permit. Over NATS, or over HTTP.

    quota.py --calls 100 --nats nats://127.0.0.1:4222 --tenant TENANT-ID   # then: switchboard policy external nats:quota
    quota.py --calls 100 --http 127.0.0.1:8181     # then: switchboard policy external http://127.0.0.1:8181/access/v1/evaluation

Question and answer are the same documents in both: those of AuthZEN's Access Evaluation API (Authorization API 1.0 §6).
"""

import argparse
import asyncio
import collections
import http.server
import json
import time

HOUR_S = 3_600


class Quota:
    """How many calls each device has made in this hour."""

    def __init__(self, calls):
        self.calls, self.hour, self.made = calls, None, collections.Counter()

    def decide(self, question):
        """The answer to one question, as it is sent; a question that is none is denied."""
        try:
            question = json.loads(question)
            device, name = question["subject"]["id"], question["subject"]["properties"]["name"]
            is_call = question["action"]["name"] == "call"
        except (ValueError, KeyError, TypeError):
            return answer(False, "this is no question about a device")
        if not is_call:
            return answer(False, "this decides over calls alone")
        hour = int(time.time() // HOUR_S)
        if hour != self.hour:
            self.hour, self.made = hour, collections.Counter()
        if self.made[device] >= self.calls:
            # That holds for a while: nobody need ask again for each call. An hour that begins is noticed a second late.
            return answer(False, f"{name} has made its {self.calls} calls of this hour", ttl_ms=1_000)
        self.made[device] += 1
        # To be counted, each call must be asked about: this answer holds for one.
        return answer(True, "")


def answer(decision, reason, ttl_ms=0):
    return json.dumps({"decision": decision, "context": {"reason": reason, "ttl_ms": ttl_ms}}).encode()


async def over_nats(quota, url, subject):
    import nats  # noqa: PLC0415 - over HTTP nothing but Python itself is needed

    async def decide(question):
        await question.respond(quota.decide(question.data))

    connection = await nats.connect(url)
    # Of several in one queue group, one is asked; each then counts for itself.
    await connection.subscribe(subject, queue="quota", cb=decide)
    await connection.flush()
    print(f"Deciding on {subject}", flush=True)
    await asyncio.Event().wait()


def over_http(quota, host, port):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            document = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found = self.path == "/access/v1/evaluation"
            body = quota.decide(document) if found else b"{}"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer((host, int(port)), Handler) as server:
        print("Deciding on http://{}:{}/access/v1/evaluation".format(*server.server_address), flush=True)
        server.serve_forever()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100, help="calls of one device an hour")
    parser.add_argument("--nats", help="NATS server, as nats://127.0.0.1:4222")
    parser.add_argument("--tenant", help="id of the tenant that asks, with --nats")
    parser.add_argument("--prefix", default="swb", help="the setting nats.prefix")
    parser.add_argument("--http", help="address to listen on, as 127.0.0.1:8181")
    options = parser.parse_args()
    quota = Quota(options.calls)
    if options.http:
        over_http(quota, *options.http.rsplit(":", 1))
    elif options.nats and options.tenant:
        asyncio.run(over_nats(quota, options.nats, f"{options.prefix}.decide.{options.tenant}.quota"))
    else:
        parser.error("say --http, or --nats and --tenant")


if __name__ == "__main__":
    main()
