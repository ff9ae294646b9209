"""Who are the applications of a test? Programs with a key, over HTTP."""

import itertools
import json
from dataclasses import dataclass
from typing import Any

from harness.accounts import TENANT, TOKENS, Accounts
from harness.raw_http import RawHttp, Response

_numbers = itertools.count(1)


@dataclass
class App:
    """An application, and one of its keys."""

    id: str
    name: str
    key: str

    @property
    def key_id(self) -> str:
        return self.key.split("_")[1]

    @property
    def bearer(self) -> str:
        return f"Bearer {self.key}"


def add_app(accounts: Accounts, *flags: str, name: str = "") -> App:
    """A new one, of which every authorizer has heard."""
    name = name or f"Backend {next(_numbers)}"
    return _shown(accounts, "app", "add", name, "--tenant", TENANT, *flags)


def add_key(accounts: Accounts, app: App, *flags: str) -> App:
    """The same application with one more key."""
    return _shown(accounts, "app", "key", app.id, *flags)


def _shown(accounts: Accounts, *command: str) -> App:
    shown = json.loads(accounts.cli(*command, "--json").ok().out)
    TOKENS.add(shown["key"])
    accounts.wait_heard()
    return App(shown["id"], shown["name"], shown["key"])


def call(http: RawHttp, app: App, device: str, body: Any = None, **headers: str) -> Response:
    """Calls a device, named by its id or its name as it stands in a path."""
    text = body if isinstance(body, str) else json.dumps({} if body is None else body)
    headers = {"Authorization": app.bearer, "Content_Type": "application/json"} | headers
    return http.ask("POST", f"/v1/devices/{device}/calls", text, **headers)
