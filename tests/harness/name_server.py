"""A name server that knows one name, of this host: name_server.py NAME. For a network of its own, where it has port 53."""

import socket
import struct
import sys

ADDRESS = socket.inet_aton("127.0.0.1")
A, NAME_ERROR = 1, 3


def main(known: str) -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    print("listening", flush=True)
    while True:
        query, asker = server.recvfrom(512)
        server.sendto(answer(query, known), asker)


def answer(query: bytes, known: str) -> bytes:
    """RFC 1035 §4: the query's head and question, and behind them the address if that is what was asked for."""
    name, end = labels(query, 12)
    question = query[12 : end + 4]
    found = name.lower() == known and struct.unpack_from("!H", query, end)[0] == A
    record = struct.pack("!HHHIH", 0xC00C, A, 1, 60, len(ADDRESS)) + ADDRESS if found else b""
    flags = 0x8580 | (0 if name.lower() == known else NAME_ERROR)
    return query[:2] + struct.pack("!HHHHH", flags, 1, int(found), 0, 0) + question + record


def labels(query: bytes, at: int) -> tuple[str, int]:
    """The name that begins there, and where it ends."""
    parts = []
    while length := query[at]:
        parts.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(parts), at + 1


main(sys.argv[1])
