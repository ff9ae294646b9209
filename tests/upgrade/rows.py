"""In which orders are services replaced? As the page for operators has it, and as it should not be done."""

from dataclasses import dataclass

from upgrade.stage import EVERYTHING, GROUPS, NEW, OLD


@dataclass(frozen=True)
class Order:
    """One way from all copies of one build to all of the next, and back the other way round."""

    name: str
    groups: tuple[str, ...]
    # Whether nobody is to notice.
    is_documented: bool = False

    @property
    def steps(self) -> list[tuple[str, str]]:
        """Which group goes to which build, one after the other."""
        return [(it, NEW) for it in self.groups] + [(it, OLD) for it in reversed(self.groups)]


ORDERS = [
    Order("documented", GROUPS, is_documented=True),
    Order("askers first", tuple(reversed(GROUPS))),
    Order("authorizers first", ("authorizers", "nodes", "routers", "APIs")),
    # As a `helm upgrade` does, which rolls every Deployment by itself.
    Order("all at once", (EVERYTHING,)),
]
