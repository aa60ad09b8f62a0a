"""What a soak found: the samples, the verdict on them, and both as JSON, as lines for people and as a plot.

Owns the limits of what counts as flat.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.flat import Finding, Limit, judge
from bench.report import said

MB = 1e6
# The last quarter beside the first, of the time behind the warm-up. Sizes and counts hardly vary; times do on a machine
# that others use, too.
LIMITS = {
    "memory_mb": Limit(0.05, 3.0),
    "files": Limit(0.05, 20.0),
    "threads": Limit(0.0, 1.0),
    "database_mb": Limit(0.05, 1.0),
    "log_mb": Limit(0.05, 1.0),
    "stored": Limit(0.05, 20.0),
    "p50_ms": Limit(0.25, 1.0),
    "p99_ms": Limit(0.5, 5.0),
    "cpu_us": Limit(0.15, 10.0),
}
LOG_LIMIT_MB = 80.0  # at any moment: SQLite's own checkpoint, the last resort, is at 67
UNCOPIED_LIMIT_MB = 67.0
_NAMES = {
    "memory_mb": "memory, MB", "files": "open files", "threads": "threads", "database_mb": "database, MB",
    "log_mb": "write-ahead log, MB", "stored": "sessions stored", "p50_ms": "p50, ms", "p99_ms": "p99, ms",
    "cpu_us": "server CPU, µs per request",
}  # fmt: skip
PANELS = {
    "latency, ms": {"longest_ms": "longest", "p99_ms": "p99", "p50_ms": "p50"},
    "requests per second": {"requests_per_s": "answered"},
    "server CPU, µs per request": {"cpu_us": "server"},
    "the machine: other programs, and its own pace": {"others": "cores in use", "pace_ms": "ms for a piece of work"},
    "memory, MB": {"memory_mb": "anonymous"},
    "on the disk, MB": {"database_mb": "database", "log_mb": "write-ahead log", "uncopied_mb": "of it not yet copied"},
    "sessions": {"stored": "stored", "live": "in memory", "stepping": "stepping"},
    "open files, threads": {"files": "files", "threads": "threads"},
}


@dataclass(frozen=True)
class Sample:
    """One look; times and counts are those since the look before.

    ``late_ms``: p99 of sending too late, by our own fault; ``others``: cores that other programs used; ``pace_ms``: CPU
    time of a fixed piece of work.
    """

    at_s: float
    memory_mb: float
    files: int
    threads: int
    database_mb: float
    log_mb: float
    uncopied_mb: float
    live: int
    stored: int
    stepping: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    longest_ms: float
    late_ms: float
    cpu_us: float
    others: float
    pace_ms: float
    problems: int


@dataclass
class Soak:
    """A whole run."""

    settings: Mapping[str, Any]
    warm_up_s: float
    capacity: list[float] = field(default_factory=list)  # requests per second, of each round
    rate: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    requests: int = 0
    created: int = 0
    deleted: int = 0
    expired: int = 0
    audited: int = 0
    log_left_mb: float = 0.0  # behind the orderly end: nothing
    problems: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def judged(self) -> list[Sample]:
        """The samples behind the warm-up."""
        return [sample for sample in self.samples if sample.at_s >= self.warm_up_s]

    def findings(self) -> dict[str, Finding]:
        """Each figure that has a limit; ValueError where the run was too short."""
        judged = self.judged
        times = [sample.at_s for sample in judged]
        return {name: judge(times, [getattr(s, name) for s in judged], limit) for name, limit in LIMITS.items()}

    def faults(self) -> list[str]:
        """What is wrong, a sentence each."""
        faults = [
            f"{_NAMES[name]}: {f.last:.4g} in the last quarter, {f.first:.4g} in the first; at most {f.allowed:.4g}"
            for name, f in self.findings().items()
            if not f.flat
        ]
        for name, most in (("log_mb", LOG_LIMIT_MB), ("uncopied_mb", UNCOPIED_LIMIT_MB)):
            if (reached := max(getattr(sample, name) for sample in self.judged)) > most:
                faults.append(f"the write-ahead log reached {reached:.0f} MB ({name}); at most {most:.0f}")
        if self.log_left_mb:
            faults.append(f"{self.log_left_mb:.1f} MB of log were left behind the orderly end")
        if self.problems:
            faults.append(f"requests went wrong: {said(self.problems)}")
        return faults

    def to_json(self) -> dict[str, Any]:
        """Everything, with the verdict."""
        return asdict(self) | {
            "findings": {name: asdict(f) | {"flat": f.flat} for name, f in self.findings().items()},
            "faults": self.faults(),
        }


def table(soak: Soak) -> str:
    """The findings as a Markdown table."""
    head = "| | first quarter | last quarter | most | slope per hour | limit |\n|---|---:|---:|---:|---:|---:|"
    rows = [
        f"| {_NAMES[name]} | {f.first:.4g} | {f.last:.4g} | {f.most:.4g} | {f.per_hour:+.2g} | {f.allowed:.4g} |"
        for name, f in soak.findings().items()
    ]
    return "\n".join([head, *rows])


def verdict(soak: Soak) -> str:
    """One sentence."""
    told = (
        f"{soak.requests:,} requests, {soak.created:,} sessions created, {soak.deleted:,} deleted, {soak.expired:,} "
        f"expired, {soak.audited:,} gone on with after a kill"
    )
    faults = soak.faults()
    return f"NOT FLAT: {told}; " + "; ".join(faults) if faults else f"flat, and no step lost or doubled: {told}"


def line(sample: Sample) -> str:
    """Live progress."""
    return (
        f"{sample.at_s / 60:6.1f} min {sample.requests_per_s:6.0f}/s  p50 {sample.p50_ms:5.1f} "
        f"p99 {sample.p99_ms:6.1f} ms  {sample.cpu_us:4.0f} µs  memory {sample.memory_mb:6.1f} MB  "
        f"files {sample.files}  db {sample.database_mb:.1f} log {sample.log_mb:.1f} MB  sessions {sample.stored} "
        f"({sample.live} live)  problems {sample.problems}"
    )


def draw(path: Path, soak: Soak) -> None:
    """The samples over time, one panel for each kind of figure."""
    from matplotlib.figure import Figure  # without pyplot, which would keep global state and look for a display

    figure = Figure(figsize=(13, 12), layout="constrained")
    minutes = [sample.at_s / 60 for sample in soak.samples]
    for axes, (title, lines) in zip(figure.subplots(4, 2, sharex=True).flat, PANELS.items(), strict=True):
        for name, label in lines.items():
            axes.plot(minutes, [getattr(sample, name) for sample in soak.samples], label=label, linewidth=0.8)
        axes.axvspan(0, soak.warm_up_s / 60, color="grey", alpha=0.15, linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.grid(visible=True, alpha=0.3)
        if "longest_ms" in lines:
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, None)
        if len(lines) > 1:
            axes.legend(fontsize=8)
    for axes in figure.axes[-2:]:
        axes.set_xlabel("minutes; the warm-up is grey")
    figure.savefig(path, dpi=110, format="png")
