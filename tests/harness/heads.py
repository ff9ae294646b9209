"""What do the services say to each other? A head in CBOR, its fields by their places (`shared/rpc`)."""

from uuid import UUID

import cbor2


def head(*fields: object) -> str:
    """A message of a head alone, with a character for each byte."""
    return cbor2.dumps(list(fields)).decode("latin-1")


def device(text: str) -> bytes:
    """A device's id."""
    return UUID(text).bytes


def node(text: str) -> int:
    """A node's id."""
    return int(text, 16)


def routed(caller: str, target: str, reply_to: str) -> str:
    """A call that an authorizer sends to a router."""
    call = [[node("fedcba9876543210"), 1], device(caller), "", 0, None, device(target), 2_000, None, 0, None, False]
    return head(call, None, reply_to)
