"""How do the tests drive a device made with ThingsBoard's SDK? `driver.py PORT TOKEN`: one command in JSON a line on
standard input; results and calls come back the same way on standard output."""

import json
import sys
import threading
from typing import Any

from tb_device_mqtt import TBDeviceMqttClient

writing = threading.Lock()


def say(**event: Any) -> None:
    with writing:
        print(json.dumps(event), flush=True)


client = TBDeviceMqttClient("127.0.0.1", int(sys.argv[1]), sys.argv[2])


def called(number: int, request: dict[str, Any]) -> None:
    say(called=request)
    client.send_rpc_reply(number, {"heard": request["params"]})


client.set_server_side_rpc_request_handler(called)


def connected(*_: Any) -> None:
    say(connected=True)


# `connect` sets it only after the network thread has begun, and a quick CONNACK then calls nobody.
client._TBDeviceMqttClient__connect_callback = connected
client.connect(callback=connected)

for line in sys.stdin:
    command = json.loads(line)
    match command["do"]:
        case "call":
            client.send_rpc_call(
                command["method"],
                command["params"],
                lambda _number, answer, error: say(answer=answer, error=error and str(error)),
            )
        case "telemetry":
            say(published=client.send_telemetry(command["values"]).get())
        case "attributes":
            say(published=client.send_attributes(command["values"]).get())
        case "limits":
            say(max_payload_bytes=client.max_payload_size if client.rate_limits_received else None)
        case "end":
            client.disconnect()
            client.stop()
            break
