"""Which of the things that a task can try does it try? Those that are named, or all."""

import sys
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


def picked(kind: str, names: Sequence[str], known: Sequence[T]) -> Sequence[T]:
    """Ends the task when there is no such name."""
    by_name = {it.name: it for it in known}
    if unknown := [name for name in names if name not in by_name]:
        sys.exit(f"there is no {kind} {', '.join(unknown)}; --list says which there are")
    return [by_name[name] for name in names] or known
