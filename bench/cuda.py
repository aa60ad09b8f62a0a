"""What a GPU brings: steps per second against batch size, where the time goes, and answers checked against the CPU.

    python -m bench.cuda [ARTIFACT ...] [--sizes 2x128 2x512] [--batches 1 16 256] [--seconds 0.5] [--provider cpu]

Runs wherever there is a CUDA GPU and the extra `gpu`. Without an artifact it takes the shipped language model. With the
extra `train` it also makes the float16 version of each, and LSTMs of the given sizes (layers x width) with random
weights. Four ways of running the same ticks, one step of each session per tick:

    host        rows come with each tick and go with it
    resident    rows stay on the device; one copy of all of them comes back
    committed   the same, and every tick is committed to SQLite before the next begins
    overlapped  two groups of sessions take turns: one is computed while the other is committed

The exit status is 1 where answers differ from the CPU's by more than rounding explains.
"""

import argparse
import itertools
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bench.kernels import shares
from service.clock import SystemClock
from service.engine import ort
from service.engine.placement import placement
from service.engine.probe import random_chunk
from service.engine.residence import banks_of, resident
from service.engine.resident import Opened, ResidentEngine
from service.engine.runtime import Engine, load_engine
from service.errors import ServiceError
from service.items import Item, Outcome, Part, Stepped
from service.settings import Settings, load_settings
from service.state import Chunk, Identity, Record
from service.step import Stepper
from service.stores.sqlite import SqliteStore
from service.views import View

SHIPPED = Path(__file__).parents[1] / "model_repository" / "language" / "1" / "model.onnx"
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
ROUNDS, SESSIONS = 300, 16  # of the comparison with the CPU
# The largest difference of an answer: TF32, in which a GPU multiplies float32, has the ten digits of float16.
ALLOWED = {"cuda": {"float32": 0.02, "float16": 0.1}, "cpu": {"float32": 1e-5, "float16": 1e-5}}
_DAY_S = 86_400.0


class _Silent:
    """Nobody looks at the metrics."""

    def ran(self, rows: int, steps: int, padding: int, seconds: float) -> None: ...

    def committed(self, rows: int, seconds: float) -> None: ...

    def generated(self, steps: int) -> None: ...


class Sessions:
    """So many sessions of an engine, in a store of their own, one step of each at a time."""

    def __init__(self, engine: Engine, count: int, store: Path) -> None:
        random = np.random.default_rng(0)
        self._store = SqliteStore(store, fsync=False)
        self._stepper = Stepper(engine, self._store, SystemClock(), _Silent(), keep_answer_bytes=0)
        chunks = [random_chunk(engine.signature, 1, random) for _ in range(count)]
        records = [_new(f"{n}", engine.initial_row) for n in range(count)]
        self._store.create(records)
        size = -(-count // 2)
        self.groups = [list(range(count))[start : start + size] for start in range(0, count, size)]
        self._items = [_item(record, chunk) for record, chunk in zip(records, chunks, strict=True)]
        self._finishing = ThreadPoolExecutor(1)

    def step(self) -> None:
        """One tick of all, computed and then committed."""
        self._take(range(len(self._items)), self._stepper.run(self._items))

    def take_turns(self) -> Iterator[None]:
        """Ticks of half the sessions each, one computed while the one before is committed."""
        under_way: list[Future[list[Outcome]] | None] = [None] * len(self.groups)
        for turn in itertools.cycle(range(len(self.groups))):
            before = under_way[turn]
            if before is not None:
                self._take(self.groups[turn], before.result())
            begun = self._stepper.begin([self._items[n] for n in self.groups[turn]])
            under_way[turn] = self._finishing.submit(self._stepper.finish, begun)
            yield

    def _take(self, chosen: Sequence[int], outcomes: Sequence[Outcome]) -> None:
        for n, outcome in zip(chosen, outcomes, strict=True):
            assert isinstance(outcome, Stepped), outcome
            assert outcome.record is not None
            self._items[n] = _item(outcome.record, self._items[n].chunk or ())

    def close(self) -> None:
        """End what runs."""
        self._finishing.shutdown()
        self._store.close()


def _new(id: str, row: bytes) -> Record:
    return Record(Identity(id, "", "m", "1", "", _DAY_S, 0.0), 0, 0, row, b"", (), _DAY_S)


def _item(record: Record, chunk: Chunk) -> Item:
    return Item(row=record.row, parts=(Part(1, View()),), chunk=chunk, record=record)


def keeping(engine: Engine, settings: Settings, slots: int) -> ResidentEngine:
    """The engine whose rows stay, with so many slots."""
    made = ResidentEngine(Opened.of(engine.path.read_bytes(), engine.signature, settings), engine, slots)
    made.min_rows = engine.min_rows
    return made


def rate(tick: Callable[[], object], rows: float, seconds: float) -> float:
    """Rows per second: the best of three rounds, after one that nobody counts."""
    best, ticks = 0.0, 1
    for counted in range(4):
        started = time.perf_counter()
        for _ in range(ticks):
            tick()
        took = time.perf_counter() - started
        if counted:
            best = max(best, ticks * rows / took)
        ticks = max(1, min(10_000, round(ticks * seconds / 3 / took)))
    return best


def chain(engine: Engine, chunks: list[Chunk]) -> Callable[[], float]:
    """Ticks that each go on from the rows of the last; returns its seconds."""
    rows = [[engine.initial_row] * len(chunks)]

    def tick() -> float:
        started = time.perf_counter()
        rows[0] = engine.run(rows[0], chunks).rows
        return time.perf_counter() - started

    return tick


def measured(engine: Engine, settings: Settings, batch: int, seconds: float) -> str:
    """A line of the table."""
    random, slots = np.random.default_rng(0), 2 * batch + 2
    chunks = [random_chunk(engine.signature, 1, random) for _ in range(batch)]
    kept = keeping(engine, settings, slots)
    rates = [rate(chain(one, chunks), batch, seconds) for one in (engine, kept)]
    with tempfile.TemporaryDirectory() as folder:
        sessions = Sessions(kept, batch, Path(folder, "sessions.db"))
        rates.append(rate(sessions.step, batch, seconds))
        turns = sessions.take_turns()
        rates.append(rate(lambda: next(turns), batch / len(sessions.groups), seconds))
        sessions.close()
    ticks = max(3, min(200, round(rates[1] / batch * seconds / 3)))
    share = shares(engine, slots, settings, lambda watched: chain(watched, chunks)(), ticks)
    told = "".join(f" {value:>10,.0f} |" for value in rates)
    return f"| {batch:>5} |{told} {share.call:>5.0%} | {share.kernels:>5.0%} {share.measured} |"


def apart(engine: ResidentEngine, reference: Engine) -> float:
    """The largest difference of an answer of sessions that go their own ways, for some hundred steps."""
    random, worst = np.random.default_rng(1), 0.0
    longest = 4 if reference.signature.has_time_axis else 1
    here, there = [engine.initial_row] * SESSIONS, [reference.initial_row] * SESSIONS
    for _ in range(ROUNDS):
        chosen = random.permutation(SESSIONS)[: random.integers(1, SESSIONS + 1)].tolist()
        lengths = random.integers(1, longest + 1, len(chosen)) if reference.ragged else [longest] * len(chosen)
        chunks = [random_chunk(reference.signature, int(steps), random) for steps in lengths]
        ours = engine.run([here[i] for i in chosen], chunks)
        theirs = reference.run([there[i] for i in chosen], chunks)
        for n, i in enumerate(chosen):
            here[i], there[i] = ours.rows[n], theirs.rows[n]
            for name, output in ours.outputs.items():
                of_row = slice(0, int(lengths[n]))
                one, other = (o[n, of_row].astype(np.float64) for o in (output, theirs.outputs[name]))
                worst = max(worst, float(np.abs(one - other).max()))
    return worst


def machine(provider: str) -> list[str]:
    """The device, its driver, and the versions."""
    device = platform.processor() or platform.machine()
    if provider == "cuda" and (program := shutil.which("nvidia-smi")):
        query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        device = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or device
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, ONNX Runtime {ort.VERSION}"
    return [f"device: {device}", f"versions: {versions} ({ort.BUILD})"]


def subjects(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """Each artifact with its title, and its float16 version where it can be made."""
    given = options.artifacts or ([] if options.sizes else [SHIPPED])
    if find_spec("onnx") is None:
        print("no float16 versions and no sizes: they are made with the extra `train`", file=sys.stderr)
    else:
        from bench import untrained

        for size in options.sizes:
            layers, hidden = map(int, size.split("x"))
            untrained.write(path := folder / f"{size}.onnx", layers, hidden, hidden)
            given = [*given, path]
    for path in given:
        title = path.stem if path.parent == folder else "/".join(path.parts[-3:-1])
        yield title, path
        if find_spec("onnx") is not None and (halved := _halved(path, folder / f"{title.replace('/', '-')}-half.onnx")):
            yield title, halved


def _halved(source: Path, path: Path) -> Path | None:
    """The float16 version of an artifact, or none where it is one, or has no use for it."""
    from onnx import ModelProto

    from export.errors import ExportError
    from export.quantization.converting import convert
    from export.signature import attach

    signature = load_engine(source, load_settings(provider="cpu")).signature
    try:
        converted = convert(ModelProto.FromString(source.read_bytes()), signature, "float16")
    except ExportError as error:
        print(f"{source}: {error}", file=sys.stderr)
        return None
    path.write_bytes(attach(converted.model, converted.signature))
    return path


def report(title: str, path: Path, options: argparse.Namespace) -> bool:
    """Print everything of an artifact; whether its answers agree."""
    settings = load_settings(provider=options.provider, threads=options.threads)
    engine, reference = load_engine(path, settings), load_engine(path, load_settings(provider="cpu"))
    kind = "float16" if "float16" in {state.dtype for state in engine.signature.states} else "float32"
    print(f"\n{title}, {kind}: a row has {engine.layout.row_bytes} bytes")
    for provider, operators in placement(resident(path.read_bytes(), banks_of(engine.signature)), settings).items():
        print(f"{provider}: {', '.join(f'{many} {operator}' for operator, many in sorted(operators.items()))}")
    worst, allowed = apart(keeping(engine, settings, SESSIONS + 2), reference), ALLOWED[engine.provider][kind]
    print(f"largest difference from the CPU: {worst:.2g} (allowed: {allowed:g})\n")
    print("| batch |       host |   resident |  committed | overlapped |  call | kernels |")
    print("|------:|-----------:|-----------:|-----------:|-----------:|------:|---------|")
    for batch in options.batches:
        try:
            print(measured(engine, settings, batch, options.seconds), flush=True)
        except ort.ERRORS as error:  # such as: too little memory for so many
            print(f"| {batch:>5} | {ort.first_line(error)} |")
    return worst <= allowed


def run(options: argparse.Namespace) -> bool:
    """Print everything; whether all answers agree."""
    print(*machine(options.provider), sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        agree = [report(title, path, options) for title, path in subjects(options, Path(folder))]
    return all(agree)


def main() -> int:
    """Read the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path, metavar="ARTIFACT")
    parser.add_argument("--sizes", nargs="*", default=[], metavar="LAYERSxWIDTH")
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each figure")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime on the CPU")
    try:
        return 0 if run(parser.parse_args()) else 1
    except ServiceError as error:  # such as: no CUDA here
        raise SystemExit(error.detail) from error


if __name__ == "__main__":
    sys.exit(main())
