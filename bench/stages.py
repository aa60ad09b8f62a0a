"""Where each microsecond of a step goes: a profile of a server under load, stage by stage, that adds up to the total.

    python -m bench.stages [--onnx FILE] [--sessions 64] [--seconds 8] [--docs docs/performance.md]

``--onnx`` takes the model of the comparison of model servers (bench/yardstick.py); without it, an untrained one as
large. The server is the real one, with SQLite commits, in a process of its own whose main thread is interrupted after
every millisecond of CPU time: each time the stage is noted that the innermost function belongs to. What a function
calls in C (ONNX Runtime, SQLite, the kernel) counts as its own. ``--docs`` writes the table into a page, between marks.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.request import urlopen

from bench.processor import cpu_seconds, server_processes
from bench.serving import PROGRAM, serving
from bench.yardstick import onnx_file, repository

INTERVAL_S = 0.001
MADE_S = 3  # until the sessions are made, and the measurement runs
MARKS = ("<!-- table: python -m bench.stages writes it -->", "<!-- end of the table -->")
# The innermost frame that one of these stands for decides: (what its file ends with, its function or "", the stage).
STAGES: tuple[tuple[str, str, str], ...] = (
    ("service/api/connection.py", "answer", "the answer to the socket, a system call"),
    ("service/api/connection.py", "", "HTTP: the request's head and body"),
    ("uvicorn/protocols/http/httptools_impl.py", "", "HTTP: the request's head and body"),
    ("service/api/encoding.py", "", "the answer as JSON"),
    ("service/api/", "", "validation: JSON to a chunk"),
    ("onnxruntime/capi/onnxruntime_inference_collection.py", "run", "ONNX Runtime"),
    ("service/engine/", "", "rows into a batch and back, and whether they are finite"),
    ("service/state.py", "gather", "rows into a batch and back, and whether they are finite"),
    ("service/state.py", "scatter", "rows into a batch and back, and whether they are finite"),
    ("service/state.py", "encode_answers", "the commit"),
    ("service/state.py", "checksum", "the commit"),
    ("service/stores/", "", "the commit"),
    ("service/sessions/", "", "sessions: order, exactly-once"),
    ("service/work.py", "", "sessions: order, exactly-once"),
    ("service/batching.py", "", "the queue and the forming of ticks"),
    ("service/pipeline.py", "", "the queue and the forming of ticks"),
    ("service/step.py", "", "outcomes: what is shown, and the next records"),
    ("service/items.py", "", "outcomes: what is shown, and the next records"),
    ("service/views.py", "", "outcomes: what is shown, and the next records"),
    ("service/models.py", "", "outcomes: what is shown, and the next records"),
    ("service/histograms.py", "", "metrics"),
    ("service/metrics.py", "", "metrics"),
)
LOOP = "the event loop: waiting for sockets, and reading them"


def stage(frame: FrameType | None) -> str:
    """The stage of the innermost function that belongs to one."""
    while frame is not None:
        path, function = frame.f_code.co_filename, frame.f_code.co_name
        for ending, name, found in STAGES:
            if ending in path and name in ("", function):
                return found
        frame = frame.f_back
    return LOOP


def sampled(out: str, arguments: list[str]) -> None:
    """``lstm-serve`` with these arguments in this process, sampled from the first SIGUSR1 to the second."""
    counts: Counter[str] = Counter()

    def sample(_: int, frame: FrameType | None) -> None:
        counts[stage(frame)] += 1

    def toggle(*_: object) -> None:
        running = signal.getitimer(signal.ITIMER_PROF)[1] > 0
        signal.setitimer(signal.ITIMER_PROF, *((0.0, 0.0) if running else (INTERVAL_S, INTERVAL_S)))
        if running:
            Path(out).write_text(json.dumps(counts))

    signal.signal(signal.SIGPROF, sample)
    signal.signal(signal.SIGUSR1, toggle)
    import lstm_serve

    sys.argv = ["lstm-serve", *arguments]
    lstm_serve.main()


def measure(models: Path, folder: Path, sessions: int, seconds: float) -> tuple[float, Counter[str], dict[str, Any]]:
    """µs of CPU per step, the samples by stage, and what the load generator reports."""
    out, report = folder / "samples.json", folder / "report.json"
    program = (sys.executable, "-m", "bench.stages", "--sampled", str(out))
    with serving(models, folder / "sessions.db", program=program) as server:
        load = [*PROGRAM, "bench", server.url, "--sessions", str(sessions), "--out", str(report)]
        load += ["--seconds", str(seconds + MADE_S + 1)]
        with subprocess.Popen(load, stdout=subprocess.DEVNULL) as bench:
            time.sleep(MADE_S)
            pids = server_processes(server.address)
            began, steps = cpu_seconds(pids), _steps(server.url)
            server.process.send_signal(signal.SIGUSR1)
            time.sleep(seconds)
            server.process.send_signal(signal.SIGUSR1)
            took_s, done = cpu_seconds(pids) - began, _steps(server.url) - steps
            bench.wait()
    return took_s / done * 1e6, Counter(json.loads(out.read_text())), json.loads(report.read_text())["stages"][0]


def _steps(url: str) -> float:
    """How many steps the server has run, from its own metrics."""
    with urlopen(f"{url}/metrics") as answer:  # noqa: S310 - our own server
        told = answer.read().decode()
    return sum(map(float, re.findall(r"^lstm_serve_steps_total\{.*\} (\S+)$", told, re.MULTILINE)))


def table(cpu_us: float, counts: Counter[str]) -> str:
    """The stages as Markdown, the dearest first; their sum is the total."""
    total = counts.total()
    lines = ["| stage | µs of CPU per step | share |", "|---|---:|---:|"]
    for name, count in counts.most_common():
        lines.append(f"| {name} | {cpu_us * count / total:.1f} | {count / total:.0%} |")
    return "\n".join([*lines, f"| **all of the server** | **{cpu_us:.1f}** | 100% |"])


def main() -> None:
    """Measure, print, and write the table where it is asked for."""
    if sys.argv[1:2] == ["--sampled"]:
        sampled(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=onnx_file, help="model of the comparison; an untrained one as large unless told")
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0, help="of the profile")
    parser.add_argument("--docs", type=Path, help="page whose table is to be written")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        models, _ = repository(chosen.onnx, Path(scratch))
        cpu_us, counts, report = measure(models, Path(scratch), chosen.sessions, chosen.seconds)
    found = table(cpu_us, counts)
    latency = report["latency_ms"]
    print(f"{counts.total()} samples\n{found}")
    print(f"{report['steps_per_s']:,.0f} steps/s, p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms")
    if chosen.docs is not None:
        pattern = f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}"
        page = chosen.docs.read_text()
        chosen.docs.write_text(re.sub(pattern, lambda _: f"{MARKS[0]}\n{found}\n{MARKS[1]}", page, flags=re.DOTALL))


if __name__ == "__main__":
    main()
