"""Histograms that cost next to nothing where they are observed: values are noted, and counted many at a time.

prometheus_client's own takes a lock and looks through its buckets at every observation, twice the price of validating a
request. What is told to Prometheus is the same.
"""

import threading
from collections.abc import Iterable, Sequence

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

_PENDING = 4096  # values that are noted before they are counted


class Series:
    """The observations under one set of labels. May be observed from several threads.

    Mutable state: ``_pending``, to which anybody appends; ``_counts`` and ``_sum``, behind the lock.
    """

    __slots__ = ("_bounds", "_counts", "_lock", "_pending", "_sum")

    def __init__(self, bounds: np.ndarray) -> None:
        self._bounds = bounds
        self._pending: list[float] = []
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Note one value."""
        self._pending.append(value)
        if len(self._pending) >= _PENDING:
            self._count()

    def totals(self) -> tuple[list[int], float]:
        """How many values were not above each bound (at last: how many in all), and their sum."""
        self._count()
        with self._lock:
            return np.cumsum(self._counts).tolist(), self._sum

    def _count(self) -> None:
        with self._lock:
            taken = self._pending[:]
            del self._pending[: len(taken)]  # what another thread has appended meanwhile stays
            values = np.array(taken, np.float64)
            self._counts += np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
            self._sum += float(values.sum())


class Histogram(Collector):
    """A family of series with the same buckets, by their labels."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._bounds = np.array(buckets, np.float64)
        self._upper = [*(str(float(bound)) for bound in buckets), "+Inf"]
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def labels(self, *values: object) -> Series:
        """The series of these labels' values."""
        return self._series.setdefault(tuple(map(str, values)), Series(self._bounds))

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """See ``prometheus_client.registry.Collector``."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, series in list(self._series.items()):
            counts, total = series.totals()
            family.add_metric(labels, list(zip(self._upper, counts, strict=True)), total)
        yield family
