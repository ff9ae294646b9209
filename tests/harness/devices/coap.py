"""How does a device made with aiocoap do it? Confirmable requests, Observe, and blocks where a body is long."""

import asyncio
import contextlib
import functools
import json
import re
import threading
from collections.abc import Coroutine
from typing import Any, ClassVar, Self
from urllib.parse import quote

import aiocoap

from harness.accounts import Identity
from harness.cluster import Ingress
from harness.devices.device import Answer, Device
from harness.waiting import PATIENCE_S


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all devices, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(work, _loop()).result(PATIENCE_S)


class CoapDevice(Device):
    """A device that speaks CoAP over UDP, from a port of its own."""

    protocol: ClassVar[str] = "coap"
    # Nothing is sent to a device that has a call and does not answer: that it has gone shows only at the next one.
    seen_to_vanish: ClassVar[bool] = False

    def __init__(self, identity: Identity) -> None:
        super().__init__(identity)
        # The code of the notification that ended the observation, if the server did.
        self.end_code: str | None = None
        # Of the newest call.
        self.last_number: int | None = None
        self._base = ""
        self._context: aiocoap.Context | None = None
        self._registration: aiocoap.Message | None = None
        self._observation: Any = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(self, node: Ingress) -> Self:
        self._base = f"coap://{node.host}:{node.coap_port}/api/v1/{quote(self.identity.token, safe='')}"
        self._context = _run(aiocoap.Context.create_client_context())
        return self

    def ask(self, request: str) -> Answer:
        answer = Answer()

        async def perform() -> None:
            try:
                answer.came((await self._request(aiocoap.POST, "rpc", request)).payload.decode())
            except aiocoap.error.Error as error:
                answer.never_came(f"no response: {error!r}")

        _loop().call_soon_threadsafe(self._spawn, perform())
        return answer

    def request(self, code: aiocoap.Code, path: str, body: str = "", **options: Any) -> tuple[str, str]:
        """Code (as "2.05") and text of one request below the device's token."""
        response = _run(self._request(code, path, body, **options))
        return response.code.dotted, response.payload.decode()

    def observes(self, path: str) -> tuple[str, str]:
        """Code and text of the first response to an observation of something below the token, which is granted."""
        response = _run(self._request(aiocoap.GET, path, "", observe=0))
        assert response.opt.observe is not None
        return response.code.dotted, response.payload.decode()

    def close(self) -> None:
        if self._registration is not None and not self.ended.is_set():
            code = _run(self._deregister())
            assert code == "2.05", code
        self.vanish()

    def vanish(self) -> None:
        self.ended.set()
        if self._context is not None:
            _run(self._end(self._context))
            self._context = None

    def _listen(self) -> None:
        _run(self._observe())

    async def _observe(self) -> None:
        self._registration = aiocoap.Message(code=aiocoap.GET, uri=f"{self._base}/rpc", observe=0)
        request = self._in_context().request(self._registration)
        response = await request.response
        assert response.code == aiocoap.CONTENT and response.opt.observe is not None, response
        self._observation = request.observation
        self._spawn(self._take_calls())

    async def _take_calls(self) -> None:
        with contextlib.suppress(aiocoap.error.Error):
            async for notification in self._observation:
                if notification.code.is_successful():
                    self._take(notification.payload.decode())
                else:
                    self.end_code = notification.code.dotted
        self.ended.set()

    def _take(self, text: str) -> None:
        number = self.last_number = json.loads(text)["id"]
        # The number is what CoAP adds; the rest is the same for every protocol.
        self._called(re.sub(rf'^\{{"id":{number},', "{", text), lambda body: self._answer(number, body))

    def _answer(self, number: int, body: str) -> None:
        async def perform() -> None:
            with contextlib.suppress(aiocoap.error.Error):
                code = (await self._request(aiocoap.POST, f"rpc/{number}", body)).code.dotted
                # 4.04: too late, as some tests want it.
                assert code in ("2.04", "4.04"), code

        _loop().call_soon_threadsafe(self._spawn, perform())

    async def _end(self, context: aiocoap.Context) -> None:
        if self._observation is not None and not self._observation.cancelled:
            self._observation.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await context.shutdown()

    async def _deregister(self) -> str:
        """Observe 1, under the token that the observation has: aiocoap knows no such thing."""
        assert self._registration is not None
        token, remote = self._registration.token, self._registration.remote
        interfaces = self._in_context().request_interfaces
        (tokens,) = (it for it in interfaces if (token, remote) in getattr(it, "outgoing_requests", ()))
        request, message = tokens.request, aiocoap.Message(code=aiocoap.GET, uri=f"{self._base}/rpc", observe=1)

        def with_the_token(pipe: Any) -> None:
            # Answers may be on their way at the same time: they draw tokens of their own.
            if pipe.request is message:
                tokens.next_token, drawing = lambda: token, tokens.next_token
                request(pipe)
                tokens.next_token = drawing
            else:
                request(pipe)

        tokens.request = with_the_token
        response = await self._in_context().request(message, handle_blockwise=False).response
        tokens.request = request
        return response.code.dotted

    async def _request(self, code: aiocoap.Code, path: str, body: str, **options: Any) -> aiocoap.Message:
        message = aiocoap.Message(code=code, uri=f"{self._base}/{path}", payload=body.encode(), **options)
        return await self._in_context().request(message).response

    def _in_context(self) -> aiocoap.Context:
        assert self._context is not None, "not connected"
        return self._context

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
