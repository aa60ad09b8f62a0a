"""What is counted while a load runs, and the percentiles of it; counts of several processes add up.

Knows nothing of sessions or of HTTP.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
_FINE = 128  # buckets for each doubling: each is 0.5 % wide
_LEAST_S = 1e-6


class Histogram:
    """Durations in seconds, in buckets of logarithmic width: a percentile is told up to 0.5 % too high, never too low.

    Adding is all that happens while a load runs, and memory does not grow with the number of durations.
    """

    def __init__(self) -> None:
        self.counts: dict[int, int] = defaultdict(int)
        self.longest = 0.0

    def add(self, duration: float) -> None:
        """Count one."""
        self.counts[int(math.log2(duration / _LEAST_S) * _FINE) if duration > _LEAST_S else 0] += 1
        self.longest = max(self.longest, duration)

    def merge(self, other: "Histogram") -> None:
        """Count all of another."""
        for bucket, count in other.counts.items():
            self.counts[bucket] += count
        self.longest = max(self.longest, other.longest)

    @property
    def total(self) -> int:
        """How many durations were counted."""
        return sum(self.counts.values())

    def quantile(self, share: float) -> float:
        """The least duration that at least this share of all did not exceed (nearest rank); NaN where there is none."""
        rank = math.ceil(share * self.total - 1e-9)  # 0.999 * 1000 is a little above 999
        reached = 0
        for bucket, count in sorted(self.counts.items()):
            reached += count
            if reached >= max(rank, 1):
                return self._upper(bucket)
        return math.nan

    def curve(self) -> list[tuple[float, int]]:
        """Each bucket that was met, as (duration, count)."""
        return [(self._upper(bucket), count) for bucket, count in sorted(self.counts.items())]

    def _upper(self, bucket: int) -> float:
        return min(_LEAST_S * 2 ** ((bucket + 1) / _FINE), self.longest)


@dataclass
class Tally:
    """What one process, or all together, counted in the measured seconds; problems also of the warm-up."""

    requests: int = 0  # answered as they should be
    latencies: Histogram = field(default_factory=Histogram)  # of what began in the measured seconds
    late: Histogram = field(default_factory=Histogram)  # open loop: sending behind schedule, by our own fault
    unanswered: int = 0  # begun or due, and not answered at the end; their latencies are what they had waited by then
    problems: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0
    seconds: float = 0.0
    busiest: float = 0.0  # the largest share of a core that a process needed

    @property
    def busy(self) -> float:
        """The share of a core."""
        return self.cpu_s / self.seconds if self.seconds else 0.0


def together(tallies: Iterable[Tally]) -> Tally:
    """The sum of what several processes counted in the same seconds."""
    whole = Tally()
    for tally in tallies:
        whole.requests += tally.requests
        whole.latencies.merge(tally.latencies)
        whole.late.merge(tally.late)
        whole.unanswered += tally.unanswered
        whole.problems.update(tally.problems)
        whole.cpu_s += tally.cpu_s
        whole.seconds = max(whole.seconds, tally.seconds)
        whole.busiest = max(whole.busiest, tally.busy)
    return whole
