"""The service's metrics, each saying which setting it informs. The registry is a parameter: there is no global one."""

import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, disable_created_metrics

from service.errors import ServiceError
from service.histograms import Histogram

# 50 µs to 5 s, three to a decade: from one small step to a long generation.
SECONDS = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Every metric of one service."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, which nobody asks for
        self.registry = r = registry or CollectorRegistry()
        p = "lstm_serve_"
        self.requests = Histogram(
            p + "request_seconds",
            "From the request's first byte to the answer's last, by route and status. "
            "If it is much longer than queue + run + commit, one process is short of CPU.",
            ("route", "status"),
            SECONDS,
            r,
        )
        self.queue = Histogram(
            p + "queue_seconds",
            "Time a request's steps waited for their tick to run. If it grows: max_batch, or more CPU (informs "
            "max_queue, queue_timeout_s).",
            ("model",),
            SECONDS,
            r,
        )
        self.run = Histogram(
            p + "run_seconds",
            "Time of one tick in ONNX Runtime (informs threads, provider, segment_steps).",
            ("model",),
            SECONDS,
            r,
        )
        self.commit = Histogram(
            p + "commit_seconds",
            "Time of one tick's commit to the store (informs store, durability).",
            ("model",),
            SECONDS,
            r,
        )
        self.rows = Histogram(
            p + "tick_rows",
            "Rows that shared one tick (informs max_batch, max_cells).",
            ("model",),
            ROWS,
            r,
        )
        self.steps = Counter(p + "steps", "Time steps that were run.", ("model",), registry=r)
        self.padding = Counter(
            p + "padding_cells",
            "Cells (row x step) computed only to fill up a tick; compare with steps (informs segment_steps).",
            ("model",),
            registry=r,
        )
        self.generated = Counter(p + "generated", "Steps generated: tokens, forecast values.", ("model",), registry=r)
        self.created = Counter(p + "sessions_created", "Sessions created.", ("model",), registry=r)
        self.ended = Counter(
            p + "sessions_ended", "Sessions ended, by reason (informs default_ttl_s).", ("reason",), registry=r
        )
        self.sessions = Gauge(
            p + "sessions",
            "Sessions in memory (live) and only in the store (resting) (informs max_live).",
            ("where",),
            registry=r,
        )
        self.loads = Counter(
            p + "session_loads",
            "Requests whose session was not at hand: it rested in the store (resting), or another replica may have "
            "moved it (moved). Few, beside the requests, where a balancer keeps a session at its replica (informs "
            "max_live).",
            ("why",),
            registry=r,
        )
        self.store_warnings = Gauge(
            p + "store_warnings",
            "How many sentences /health/ready says of what the store may lose, as it is set up (informs store).",
            registry=r,
        )
        self.waiting = Gauge(
            p + "waiting", "Works that wait for a tick now (informs max_queue).", ("model", "version"), registry=r
        )
        self.rejected = Counter(
            p + "rejected",
            "Requests answered with an error, by its type (informs the limits).",
            ("reason",),
            registry=r,
        )
        self.replayed = Counter(p + "replayed", "Repeats that were answered from the kept answer.", registry=r)
        self.dropped = Counter(
            p + "dropped",
            "Works dropped before they ran: client gone or too late (informs queue_timeout_s).",
            registry=r,
        )
        self.tick_failures = Counter(p + "tick_failures", "Ticks that came to nothing.", ("model",), registry=r)
        self.loops_ended = Counter(p + "loops_ended", "Batcher loops that ended by a fault; must be 0.", registry=r)
        self.models = Gauge(
            p + "model_info",
            "1 for each loaded model, with what runs it, in ticks of min_rows to max_batch rows (informs "
            "provider, tune, threads, max_batch).",
            ("model", "version", "fingerprint", "task", "provider", "min_rows", "bit_exact", "threads", "max_batch"),
            registry=r,
        )
        self.build = Info(p + "build", "Versions of what runs.", registry=r)

    def count_sessions(self, live: Callable[[], int], kept: Callable[[], int]) -> None:
        """Read the session gauges from these functions whenever they are scraped; NaN for what cannot be read now.

        Metrics are wanted most when the store is in trouble: one gauge must not take the others with it.
        """

        def resting() -> float:
            try:
                return max(0, kept() - live())
            except ServiceError:
                return math.nan

        self.sessions.labels("live").set_function(live)
        self.sessions.labels("resting").set_function(resting)

    def of_model(self, name: str) -> "ModelMetrics":
        """The metrics of one model, with the label filled in once."""
        return ModelMetrics(self, name)


class ModelMetrics:
    """One model's metrics: what its batcher and its stepper report to."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._dropped, self._loops_ended = metrics.dropped, metrics.loops_ended
        self._queue = metrics.queue.labels(model)
        self.replayed = metrics.replayed
        self._generated = metrics.generated.labels(model)
        self.created = metrics.created.labels(model)
        self._run = metrics.run.labels(model)
        self._commit = metrics.commit.labels(model)
        self._rows = metrics.rows.labels(model)
        self._steps = metrics.steps.labels(model)
        self._padding = metrics.padding.labels(model)
        self._tick_failures = metrics.tick_failures.labels(model)

    def ran(self, rows: int, steps: int, padding: int, seconds: float) -> None:
        """See ``step.StepObserver``."""
        self._run.observe(seconds)
        self._rows.observe(rows)
        self._steps.inc(steps)
        if padding:
            self._padding.inc(padding)

    def committed(self, rows: int, seconds: float) -> None:
        """See ``step.StepObserver``."""
        self._commit.observe(seconds)

    def generated(self, steps: int) -> None:
        """See ``step.StepObserver``."""
        self._generated.inc(steps)

    def waited(self, seconds: float) -> None:
        """See ``batching.Observer``."""
        self._queue.observe(seconds)

    def tick_failed(self, works: int) -> None:
        """See ``batching.Observer``."""
        self._tick_failures.inc()

    def dropped(self) -> None:
        """A request was dropped before it ran: its client had gone, or it had waited too long."""
        self._dropped.inc()

    def loop_ended(self) -> None:
        """See ``batching.Observer``."""
        self._loops_ended.inc()
