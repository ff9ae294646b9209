"""What does a caller ask, to the byte? Requests of the device API, for tests that write them themselves."""

import json

from harness.accounts import Identity

TIME = '{"method":"getTime"}'


def send_msg(target: Identity, body: str = "1", **params: object) -> str:
    """A call of this device with this JSON."""
    return json.dumps({"method": "sendMsg", "params": {"deviceId": target.id, "body": json.loads(body)} | params})
