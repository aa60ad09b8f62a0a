"""What each level of ``durability`` costs: a server of each, over SQLite in a fresh folder, loaded in turn.

    python -m bench.durability [--sessions 1,16,64] [--rounds 3] [--seconds 3] [--folder .]

Medians of the rounds are told; CPU time is the server's. ``fsync`` waits for the disk under ``--folder``.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.options import counts
from bench.serving import PROGRAM, SHIPPED, Server, serving

LEVELS = ("memory", "commit", "fsync")
HEAD = "| sessions | durability | steps/s | p50, ms | p99, ms | CPU per step, µs |\n|---:|---|---:|---:|---:|---:|"
Stage = dict[str, Any]


def _stage(server: Server, sessions: int, seconds: float, report: Path) -> Stage:
    """What the load generator reports of one server."""
    options = ["--model", "language", "--sessions", str(sessions), "--seconds", str(seconds), "--out", str(report)]
    done = subprocess.run([*PROGRAM, "bench", server.url, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    (stage,) = json.loads(report.read_text())["stages"]
    told: Stage = stage
    return told


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--folder", type=Path, default=Path())
    o = parser.parse_args()
    print(HEAD)
    with tempfile.TemporaryDirectory(dir=o.folder) as name, ExitStack() as stack:
        folder = Path(name)
        servers = {
            level: stack.enter_context(serving(SHIPPED, folder / f"{level}.db", ["--durability", level]))
            for level in LEVELS
        }
        for sessions in counts(o.sessions):
            seen: dict[str, list[Stage]] = {level: [] for level in LEVELS}
            for _ in range(o.rounds):
                for level, server in servers.items():
                    seen[level].append(_stage(server, sessions, o.seconds, folder / "report.json"))
            for level, stages in seen.items():
                rate = statistics.median(stage["steps_per_s"] for stage in stages)
                p50, p99 = (statistics.median(stage["latency_ms"][p] for stage in stages) for p in ("p50", "p99"))
                cpu = statistics.median(stage["server_cpu_us_per_step"] for stage in stages)
                print(f"| {sessions} | {level} | {rate:,.0f} | {p50:.2f} | {p99:.2f} | {cpu:.0f} |", flush=True)


if __name__ == "__main__":
    main()
