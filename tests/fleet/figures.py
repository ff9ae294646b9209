"""What did a row cost? Counted from what devices saw."""

from collections import Counter
from dataclasses import dataclass
from statistics import quantiles

from fleet.fleet import Record


@dataclass
class Figures:
    """What the page has in a line."""

    devices: int
    # How many devices were cut so often.
    cuts: dict[int, int]
    goodbyes: dict[str, int]
    # Seconds from the end of a device's connection until it was callable again.
    gap_p50_s: float
    gap_p99_s: float
    gap_max_s: float
    outcomes: dict[str, int]
    # Devices at each node, in the end.
    spread: dict[str, int]
    # In the second in which there were most.
    connects_peak: int
    claims_peak: int
    cuts_peak: int
    # How long what was done took.
    lasted_s: float
    extra: dict[str, float]

    @property
    def calls(self) -> int:
        return sum(self.outcomes.values())

    @property
    def offline_share(self) -> float:
        """Calls that ended as Offline, though every device comes back within 2 s."""
        return self.outcomes.get("offline", 0) / max(self.calls, 1)

    @property
    def cuts_mean(self) -> float:
        """How often a device was cut, of those that were."""
        cut = {times: devices for times, devices in self.cuts.items() if times}
        return sum(times * devices for times, devices in cut.items()) / max(sum(cut.values()), 1)

    @property
    def spread_ratio(self) -> float:
        """The fullest node's devices to the emptiest one's."""
        return max(self.spread.values()) / max(min(self.spread.values()), 0.5)


def figures_of(record: Record, cuts: list[int], spread: dict[str, int], lasted_s: float, extra: dict[str, float]) -> Figures:
    return Figures(
        devices=len(cuts),
        cuts=dict(sorted(Counter(cuts).items())),
        goodbyes=dict(record.goodbyes.most_common()),
        gap_p50_s=_quantile(record.gaps_s, 50),
        gap_p99_s=_quantile(record.gaps_s, 99),
        gap_max_s=max(record.gaps_s, default=0.0),
        outcomes=dict(record.outcomes.most_common()),
        spread=spread,
        connects_peak=most_in_a_second(record.connected_at),
        claims_peak=most_in_a_second(record.callable_at),
        cuts_peak=most_in_a_second(record.cut_at),
        lasted_s=lasted_s,
        extra=extra,
    )


def most_in_a_second(times: list[float]) -> int:
    """The most of `times`, which rise, in any second."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - 1:
            first += 1
        most = max(most, last - first + 1)
    return most


def _quantile(values: list[float], percent: int) -> float:
    if len(values) < 2:
        return max(values, default=0.0)
    return quantiles(values, n=100, method="inclusive")[percent - 1]
