"""Whether a figure that is looked at again and again stays where it was: robust against the noise of single looks.

Knows nothing of what the figures mean.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_PARTS = 4  # of the time that is judged: the first is compared with the last
_MOST_POINTS = 300  # for the slope, which looks at all pairs


@dataclass(frozen=True)
class Limit:
    """By how much the last quarter's median may exceed the first's: a share of it, and at least ``slack``."""

    share: float
    slack: float

    def allowed(self, before: float) -> float:
        """The largest value behind this one."""
        return before + max(self.share * before, self.slack)


@dataclass(frozen=True)
class Finding:
    """``first`` and ``last``: medians of the quarters; ``per_hour``: the slope; ``most``: of all."""

    first: float
    last: float
    per_hour: float
    most: float
    allowed: float

    @property
    def flat(self) -> bool:
        """Whether the last quarter is within the limit."""
        return self.last <= self.allowed


def judge(times_s: Sequence[float], values: Sequence[float], limit: Limit) -> Finding:
    """Compare the first quarter of the time with the last.

    Raises:
        ValueError: there are fewer looks than quarters.
    """
    if len(values) < _PARTS:
        raise ValueError(f"{len(values)} looks are too few to be judged")
    quarter = len(values) // _PARTS
    first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
    return Finding(first, last, slope(times_s, values) * 3600, max(values), limit.allowed(first))


def slope(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Per second, by Theil and Sen: the median of the slopes between all pairs, which a few outliers do not move."""
    every = max(1, len(values) // _MOST_POINTS)
    points = list(zip(times_s[::every], values[::every], strict=True))
    slopes = [(b - a) / (t - s) for i, (s, a) in enumerate(points) for t, b in points[i + 1 :] if t > s]
    return statistics.median(slopes) if slopes else 0.0
