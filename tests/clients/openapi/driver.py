"""What does a program in Python do with a client that was generated from the API's description? `driver.py URL DEVICE`,
the key in KEY: calls the device twice, and prints what it was told, a line of JSON each."""

import json
import os
import sys
from typing import Any

from client import AuthenticatedClient
from client.api.calls import call
from client.api.devices import show
from client.models import CallBody, Device, Problem

url, device = sys.argv[1:]


def say(response: Any, **told: Any) -> None:
    print(json.dumps({"status": response.status_code, **told}))


with AuthenticatedClient(base_url=url, token=os.environ["KEY"]) as client:
    answered = call.sync_detailed(device, client=client, body=CallBody(method="blink", params={"times": 3}))
    say(answered, answer=answered.parsed)
    refused = call.sync_detailed(device, client=client, body=CallBody(timeout=0))
    assert isinstance(refused.parsed, Problem)
    say(refused, field=refused.parsed.field, seen=refused.parsed.seen)
    shown = show.sync_detailed(device, client=client)
    assert isinstance(shown.parsed, Device)
    say(shown, id=shown.parsed.id, online=shown.parsed.online)
