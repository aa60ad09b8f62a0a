"""What a step costs on a stream (a WebSocket), and ONNX Runtime alone for the same work, in turn.

    python -m bench.stream [--onnx FILE] [--rounds 3] [--seconds 3] [--out FILE]

64 connections with one step in flight, with 16, and with chunks of 100 steps, in JSON and binary, against a server of
its own with SQLite commits on. ``--onnx`` takes the model of the comparison of model servers (see bench/yardstick.py: a
2x128 LSTM over 96 symbols); without it, an untrained one as large. Machines are noisy: each round has all of them in
turn, and every figure is the median of the rounds.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.crew import Crew
from bench.inside import Bare
from bench.options import Address, Options
from bench.report import rows
from bench.running import describe
from bench.serving import serving
from bench.yardstick import onnx_file, repository
from service.engine.repository import load_repository
from service.settings import load_settings

CONNECTIONS = 64
WARM_UP_S = 0.7


@dataclass(frozen=True)
class Case:
    """A way to send: requests in flight on each connection, and steps of each."""

    in_flight: int
    steps: int
    binary: bool

    @property
    def name(self) -> str:
        """As the table says it."""
        return f"{self.in_flight} in flight, {self.steps} steps each, {'binary' if self.binary else 'JSON'}"


CASES = [Case(f, steps, binary) for f, steps in ((1, 1), (16, 1), (1, 100)) for binary in (False, True)]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.stream")
    parser.add_argument(
        "--onnx", type=onnx_file, help="the model of the comparison; an untrained one as large unless told"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--out", type=Path, help="JSON report to write")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        models, name = repository(chosen.onnx, folder)
        loaded, _ = load_repository(models, load_settings(provider="cpu", tune=False))
        bare = Bare(next(model.engine for model in loaded if model.name == name))
        with serving(models, folder / "sessions.db") as server:
            rounds = [measure(server.address, name, bare, chosen.seconds) for _ in range(chosen.rounds)]
    tell(rounds)
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(rounds, indent=1) + "\n")


def measure(where: Address, model: str, bare: Bare, seconds: float) -> dict[str, dict[str, float]]:
    """One round: by case, steps per second, the server's CPU per step, and ONNX Runtime's alone."""
    told = {}
    for case in CASES:
        options = Options(
            *((CONNECTIONS,), None, case.steps, seconds, WARM_UP_S, 1, 0, None),
            transport="websocket",
            in_flight=case.in_flight,
            binary=case.binary,
        )
        with Crew(where, describe(where, model), options) as crew:
            row = rows(crew.run(CONNECTIONS, lambda _, __: None), options)
            crew.close()
        if row["problems"] or crew.problems:
            raise SystemExit(f"{case.name}: {row['problems']} {dict(crew.problems)}")
        told[case.name] = {
            "steps_per_s": row["steps_per_s"],
            "server_cpu_us": row["server_cpu_us_per_step"],
            "bare_us": bare.tick_us(CONNECTIONS, case.steps * case.in_flight),
        }
    return told


def tell(rounds: list[dict[str, dict[str, float]]]) -> None:
    """The table: medians, and the median of the ratios within a round."""
    print("| 64 connections | steps/s | server CPU µs per step | ONNX Runtime alone | ratio |")
    print("|---|---:|---:|---:|---:|")
    for case in CASES:
        found = [told[case.name] for told in rounds]
        middle = {key: statistics.median(f[key] for f in found) for key in found[0]}
        ratio = statistics.median(f["server_cpu_us"] / f["bare_us"] for f in found)
        print(
            f"| {case.name} | {middle['steps_per_s']:,.0f} | {middle['server_cpu_us']:.1f} | "
            f"{middle['bare_us']:.1f} | {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
