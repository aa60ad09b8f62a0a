"""A measurement as JSON, as lines for people, and as a plot. Owns what the figures are called and what they mean."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.crew import Stage
from bench.figures import QUANTILES, Tally
from bench.options import Options

TOO_BUSY = 0.8  # of a core: beyond it the generator may be what is measured
LEFT = 0.01  # of the requests may be unanswered at the end where a server keeps up
TOO_LATE_S = 0.002  # for the open loop's 99th percentile
CLOSED = (
    "closed loop: each session sends its next request when one is answered, and a latency begins at sending. "
    "A server that stalls is sent less meanwhile, so these percentiles tell what a request takes, not what users meet "
    "who come when they like; no correction is sound without a schedule: --rate gives one."
)
OPEN = (
    "open loop: requests are due at random times (Poisson), whatever the server does, and a latency begins when its "
    "request was due; what a stall delays is counted in full."
)
HEAD = (
    f"{'sessions':>8} {'steps/s':>9}" + "".join(f"{q + ' ms':>10}" for q in QUANTILES) + f"{'max ms':>10}"
    f"{'server CPU µs/step':>20}{'own µs/request':>16}{'own busy':>10}"
)


def rows(stage: Stage, options: Options) -> dict[str, Any]:
    """The figures of a stage; a figure that there is not is None."""
    t = stage.tally
    per_second = t.requests / t.seconds if t.seconds else 0.0
    steps = per_second * options.steps
    histogram = t.latencies
    return {
        "sessions": stage.sessions,
        "seconds": round(t.seconds, 3),
        "requests": t.requests,
        "requests_per_s": _figure(per_second),
        "steps_per_s": _figure(steps),
        "latency_ms": {q: _ms(histogram.quantile(share)) for q, share in QUANTILES.items()}
        | {"max": _ms(histogram.longest if histogram.total else math.nan)},
        "latency_counts_ms": [[_ms(duration), count] for duration, count in histogram.curve()],
        "unanswered": t.unanswered,
        "problems": dict(t.problems),
        "server_cpu_us_per_step": None if stage.server_busy is None else _us(stage.server_busy, steps),
        "generator": {
            "cpu_us_per_request": _us(t.cpu_s / t.seconds if t.seconds else math.nan, per_second),
            "busiest_process": _figure(t.busiest),
            "late_ms_p99": _ms(t.late.quantile(QUANTILES["p99"])) if options.rate is not None else None,
        },
    }


def line(row: Mapping[str, Any]) -> str:
    """A line under HEAD."""
    latencies = "".join(f"{_shown(value, '.2f'):>10}" for value in row["latency_ms"].values())
    own = row["generator"]
    return (
        f"{row['sessions']:8d} {_shown(row['steps_per_s'], '.0f'):>9}{latencies}"
        f"{_shown(row['server_cpu_us_per_step'], '.1f'):>20}{_shown(own['cpu_us_per_request'], '.1f'):>16}"
        f"{_shown(own['busiest_process'], '.0%'):>10}"
    )


def warnings(row: Mapping[str, Any], processes: int) -> list[str]:
    """What has to be known of a stage's figures: the generator's own limit, and what was not answered as it should."""
    own, told = row["generator"], []
    if (own["busiest_process"] or 0) > TOO_BUSY:
        told.append(
            f"{row['sessions']} sessions: the load generator was {own['busiest_process']:.0%} busy and may be what was "
            f"measured: more than --processes {processes} if there are cores left, or another machine"
        )
    if (own["late_ms_p99"] or 0) > TOO_LATE_S * 1e3:
        told.append(
            f"{row['sessions']} sessions: the load generator itself sent late (p99 {own['late_ms_p99']:.1f} ms), which "
            "is part of the latencies: cores are short here"
        )
    if not kept_up(row):
        told.append(
            f"{row['sessions']} sessions: {row['unanswered']} requests were not answered at the end, and are counted "
            "with what they had waited: the server does not keep up, or the seconds were few"
        )
    if row["problems"]:
        told.append(f"{row['sessions']} sessions: {said(row['problems'])}")
    return told


def kept_up(row: Mapping[str, Any]) -> bool:
    """Whether the server answered what was due, all but a few that it had just got."""
    return bool(row["unanswered"] <= LEFT * row["requests"])


def said(problems: Mapping[str, int]) -> str:
    """Problems in words."""
    return ", ".join(f"{count} x {kind}" for kind, count in Counter(problems).most_common())


def so_far(sessions: int, tally: Tally) -> str:
    """Live progress."""
    p50, p99 = (_shown(_ms(tally.latencies.quantile(QUANTILES[q])), ".2f") for q in ("p50", "p99"))
    problems = f", {said(tally.problems)}" if tally.problems else ""
    return f"{sessions} sessions: {tally.requests} answers, p50 {p50} ms, p99 {p99} ms{problems}"


def draw(path: Path, shown: Sequence[Mapping[str, Any]], options: Options) -> None:
    """Write the plot: latency over the share of requests, a curve for each stage; steps per second over sessions."""
    from matplotlib.figure import Figure  # without pyplot, which would keep global state and look for a display

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for row in sorted(shown, key=lambda row: int(row["sessions"])):
        total, reached, points = sum(count for _, count in row["latency_counts_ms"]), 0, []
        for duration, count in row["latency_counts_ms"]:
            points.append((total / (total - reached), duration))
            reached += count
        if points:
            left.plot(*zip(*points, strict=True), label=f"{row['sessions']}", drawstyle="steps-post")
    if options.slo is not None:
        left.axhline(options.slo.limit_s * 1e3, color="grey", linestyle="dotted", label="SLO")
    left.set(xscale="log", yscale="log", ylabel="latency, ms", xlabel="share of the requests")
    shares = {0.0: "0 %", 0.9: "90 %", 0.99: "99 %", 0.999: "99.9 %"}
    left.set_xticks([1 / (1 - share) for share in shares], shares.values())
    left.set_title("from when a request was due" if options.rate is not None else "from sending (closed loop)")
    left.legend(title="sessions")
    by_sessions = sorted((row["sessions"], row["steps_per_s"] or 0.0) for row in shown)
    right.plot(*zip(*by_sessions, strict=True), marker="o")
    right.set(xscale="log", ylim=(0, None), xlabel="sessions", ylabel="steps per second")
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=120, format="png")


def _figure(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _ms(seconds: float) -> float | None:
    return _figure(seconds * 1e3)


def _us(busy: float, per_second: float) -> float | None:
    return _figure(busy / per_second * 1e6) if per_second else None


def _shown(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
