"""Generation with continuous batching, and prefill: what a token costs in process and over server-sent events, what
a prefill beside it does to the gaps between tokens, and how near a prefill alone comes to ONNX Runtime.

    python -m bench.generation [--onnx FILE] [--streams 64] [--steps 256] [--prefill 10000] [--rounds 5] [--out FILE]

``--onnx`` takes the model of the comparison of model servers (bench/yardstick.py: a 2x128 LSTM over 96 symbols);
without it, an untrained one as large. SQLite commits are on, in a fresh folder. In each round all parts take their
turn: machines are noisy, so compare figures of one run with each other. Every figure is the median of the rounds.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

from bench.errors import BenchError
from bench.inside import Bare, Inside
from bench.serving import Server, serving
from bench.streams import Client
from bench.yardstick import onnx_file, repository

WARM_UP_STEPS = 32
PREFILLS = 3  # of a round: the quickest counts, as with ONNX Runtime's cuts


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured in a round."""

    streams: int
    steps: int
    chunk: list[int]


@dataclass(frozen=True, slots=True)
class Round:
    """Figures of one round: µs of CPU per token (``bare``: of ONNX Runtime alone, in ticks of as many rows), µs per
    prefilled step, milliseconds between the tokens of one stream."""

    bare_us: float
    inside_us: float
    streamed_us: float
    streamed_per_s: float
    gap_p50_ms: float
    gap_p99_ms: float
    beside_p99_ms: float
    bare_prefill_us: float
    prefill_us: float


FIGURES: dict[str, Callable[[Mapping[str, float]], str]] = {
    "ONNX Runtime alone, µs of CPU per token": lambda r: f"{r['bare_us']:.1f}",
    "in process, µs of CPU per token": lambda r: f"{r['inside_us']:.1f}",
    "in process, tokens per second of CPU": lambda r: f"{1e6 / r['inside_us']:,.0f}",
    "server-sent events, µs of the server's CPU per token": lambda r: f"{r['streamed_us']:.1f}",
    "server-sent events, tokens per second": lambda r: f"{r['streamed_per_s']:,.0f}",
    "gap between tokens, p50 / p99, ms": lambda r: f"{r['gap_p50_ms']:.2f} / {r['gap_p99_ms']:.2f}",
    "gap between tokens beside a prefill, p99, ms": lambda r: f"{r['beside_p99_ms']:.2f}",
    "growth of the gap's p99 beside a prefill": lambda r: f"{r['gap_growth']:.2f}",
    "prefill, ONNX Runtime alone, µs per step": lambda r: f"{r['bare_prefill_us']:.1f}",
    "prefill over HTTP, µs per step": lambda r: f"{r['prefill_us']:.1f}",
    "prefill, steps per second : ONNX Runtime's": lambda r: f"{r['prefill_share']:.2f}",
}


def medians(rounds: Sequence[Round]) -> dict[str, float]:
    """The median of each figure, and of the two ratios, which are taken within a round."""
    told = [
        asdict(r) | {"gap_growth": r.beside_p99_ms / r.gap_p99_ms, "prefill_share": r.bare_prefill_us / r.prefill_us}
        for r in rounds
    ]
    return {name: statistics.median(figures[name] for figures in told) for name in told[0]}


def table(figures: Mapping[str, float]) -> str:
    """The figures as Markdown."""
    return "\n".join(
        ["| figure | |", "|---|---:|", *(f"| {name} | {show(figures)} |" for name, show in FIGURES.items())]
    )


async def measure(client: Client, inside: Inside, bare: Bare, load: Load, rounds: int) -> list[Round]:
    """Warm up, then all parts in turn, so many times."""
    sessions = [await client.session() for _ in range(load.streams)]
    await client.stream(sessions, WARM_UP_STEPS)
    await inside.token_us(WARM_UP_STEPS)
    measured = []
    for _ in range(rounds):
        measured.append(await _round(client, inside, bare, load, sessions))
        print(json.dumps(asdict(measured[-1])), file=sys.stderr, flush=True)
    return measured


async def _round(client: Client, inside: Inside, bare: Bare, load: Load, sessions: list[str]) -> Round:
    alone = await client.stream(sessions, load.steps)
    beside = await client.stream_beside(load.chunk, sessions, load.steps)
    return Round(
        bare_us=bare.tick_us(load.streams),
        inside_us=await inside.token_us(load.steps),
        streamed_us=alone.cpu_s / alone.tokens * 1e6,
        streamed_per_s=alone.tokens / alone.seconds,
        gap_p50_ms=alone.gaps.quantile(0.5) * 1e3,
        gap_p99_ms=alone.gaps.quantile(0.99) * 1e3,
        beside_p99_ms=beside.gaps.quantile(0.99) * 1e3,
        bare_prefill_us=bare.prefill_us(load.chunk),
        prefill_us=await _prefill_us(client, load.chunk),
    )


async def _prefill_us(client: Client, chunk: list[int]) -> float:
    session, took_s = await client.session(), float("inf")
    for _ in range(PREFILLS):
        began_s = time.perf_counter()
        await client.advance(session, chunk)
        took_s = min(took_s, time.perf_counter() - began_s)
    return took_s / len(chunk) * 1e6


def main() -> int:
    """Start a server on a fresh folder, measure, print the table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("streams", 64), ("steps", 256), ("prefill", 10_000), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--onnx", type=onnx_file, help="the model of the comparison of model servers")
    parser.add_argument("--out", type=Path, help="a JSON report")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models, name = repository(options.onnx, folder)

        async def measured(server: Server) -> list[Round]:
            async with Inside.open(models, folder / "inside.db", name, options.streams) as inside:
                symbols = len(inside.model.signature.vocabulary or ())
                chunk = random.Random(0).choices(range(symbols), k=options.prefill)
                load = Load(options.streams, options.steps, chunk)
                with Client(server.address, name) as client:
                    return await measure(client, inside, Bare(inside.model.engine), load, options.rounds)

        try:
            with (
                serving(models, folder / "sessions.db") as server,
                asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
            ):
                rounds = runner.run(measured(server))
        except BenchError as error:
            print(error, file=sys.stderr)
            return 1
    figures = medians(rounds)
    print(table(figures))
    if options.out is not None:
        report = {"load": {name: getattr(options, name) for name in ("streams", "steps", "prefill")}, "model": name}
        options.out.write_text(
            json.dumps(report | {"medians": figures, "rounds": [asdict(r) for r in rounds]}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
