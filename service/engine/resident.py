"""The engine whose rows stay on the device: h and c cross the bus only to be committed, in one copy per tick.

Owns the arenas on the device and the calls with bound tensors. Which row lies where is kept by ``slots.py``, what the
graph around the model does is written in ``residence.py``. Everything here runs on a CPU as well, which is how it is
tested: there it brings nothing, since rows lie in the same memory anyway.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from service.artifact import Signature
from service.engine import ort
from service.engine.onnx_file import opset
from service.engine.probe import random_chunk
from service.engine.providers import CUDA, open_session
from service.engine.residence import FROM, MIN_OPSET, PREFIX, TO, banks_of, putting, resident
from service.engine.runtime import Engine, Run
from service.engine.slots import Seat, Slots
from service.errors import ArtifactError
from service.settings import Settings
from service.state import Chunk, Tensors

log = logging.getLogger(__name__)

_RECORD = {"session.record_ep_graph_assignment_info": "1"}  # so that ONNX Runtime tells where it has put each node
_MOVING = {"Gather", "Split", "Concat", "Add", "ScatterElements"}  # operators of ours that touch whole rows
_MAX_NUMBERS = 2**31 - 1  # in one arena: CUDA kernels count in 32 bits
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Opened:
    """What a resident engine runs: the model with its arenas, and what puts rows there."""

    session: ort.InferenceSession
    putting: ort.InferenceSession

    @classmethod
    def of(cls, content: bytes, signature: Signature, settings: Settings) -> Self:
        """Both, of an artifact's bytes."""
        banks = banks_of(signature)
        model, putter = resident(content, banks), putting(banks)
        return cls(open_session(model, settings, _RECORD), open_session(putter, settings, _RECORD))


class ResidentEngine(Engine):
    """An engine with slots for rows on the device.

    ``begin`` is called from one thread at a time, and so is what it returns.
    """

    def __init__(self, opened: Opened, plain: Engine, slots: int) -> None:
        """``plain`` is the same artifact's engine, ``slots`` how many rows stay at most, the initial one counted."""
        super().__init__(opened.session, plain.signature, plain.fingerprint, plain.path)
        self._putting = opened.putting
        self._banks = banks_of(plain.signature)
        self._leaving = [bank.named("rows") for bank in self._banks] + [spec.name for spec in plain.signature.outputs]
        self._device = ("cuda", _device_id(opened.session)) if self.provider == "cuda" else ("cpu", 0)
        self._scratch = slots  # one more: what fills a batch up goes there
        self._arenas = [
            ort.OrtValue.ortvalue_from_shape_and_type([slots + 1, bank.width], np.dtype(bank.dtype), *self._device)
            for bank in self._banks
        ]
        self._slots = Slots(slots, self.initial_row)
        self.uploaded = 0  # rows that had to be put there so far
        self._put([self.initial_row], [0])

    def begin(self, rows: Sequence[bytes], chunks: Sequence[Chunk]) -> Callable[[], Run]:
        """See ``Engine``. Where too few slots are free, the rows come and go with this call."""
        seats = self._slots.seat(rows)
        if seats is None:
            return super().begin(rows, chunks)
        try:
            fresh = [i for i, seat in enumerate(seats) if seat.fresh]
            if fresh:
                self._put([rows[i] for i in fresh], [seats[i].target for i in fresh])
            ran, lengths, fill = self._ran(seats, chunks)
        except BaseException:
            self._slots.give_up(seats)
            raise

        def finish() -> Run:
            try:
                done = self._finished(ran, lengths, fill)
            except BaseException:
                self._slots.give_up(seats)
                raise
            self._slots.keep(done.rows, seats, done.finite)
            return done

        return finish

    def _ran(self, seats: Sequence[Seat], chunks: Sequence[Chunk]) -> tuple[ort.IOBinding, list[int], int]:
        """Run the chunks from where their rows lie; what holds the outputs, the chunks' lengths, and the filling."""
        lengths, fill = [len(chunk[0]) for chunk in chunks], self._fill(len(chunks))
        sent = self._sent([*chunks, *[chunks[-1]] * fill], lengths + lengths[-1:] * fill)
        sources = [seat.source for seat in seats] + [seats[-1].source] * fill
        targets = [seat.target for seat in seats] + [self._scratch] * fill
        binding = self._bound(self._session, sent | _between(sources, targets))
        for name in self._leaving:
            binding.bind_output(name, *self._device)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding, lengths, fill

    def _put(self, rows: Sequence[bytes], targets: Sequence[int]) -> None:
        """Put rows into slots, in one copy (of each type)."""
        self.uploaded += len(rows)
        feed = {bank.named("rows"): bank.packed(self.layout, rows) for bank in self._banks}
        feed[TO] = np.array(targets)[:, None]
        self._putting.run_with_iobinding(self._bound(self._putting, feed))

    def _bound(self, session: ort.InferenceSession, feed: Tensors) -> ort.IOBinding:
        """A call with inputs from the host, and with arenas that are changed in place: they are what goes in and what
        comes out, and ONNX Runtime's scatter copies nothing where both are one."""
        binding = session.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, array if array.flags.c_contiguous else np.ascontiguousarray(array))
        for bank, arena in zip(self._banks, self._arenas, strict=True):
            binding.bind_ortvalue_input(bank.named("arena"), arena)
            binding.bind_ortvalue_output(bank.named("kept"), arena)
        binding.synchronize_inputs()
        return binding

    def _finished(self, ran: ort.IOBinding, lengths: Sequence[int], fill: int) -> Run:
        """What a run came to, on the host: one copy of all rows (of a type), and one of each output."""
        left = ran.get_outputs()[len(self._banks) :]  # the arenas stay
        host = {name: value.numpy() for name, value in zip(self._leaving, left, strict=True)}
        packed = [host.pop(bank.named("rows")) for bank in self._banks]
        for bank, numbers in zip(self._banks, packed, strict=True):
            host.update(bank.unpacked(numbers))
        # States of one type lie in their bank as they do in a row.
        rows = [row.tobytes() for row in packed[0][: len(lengths)]] if len(packed) == 1 else None
        return self._came_to(host, lengths, fill, rows)

    def _states(self, rows: Sequence[bytes]) -> dict[str, np.ndarray]:
        """See ``Engine``: the rows themselves are the arenas of such a call."""
        places = range(len(rows))
        packed = {bank.named("arena"): bank.packed(self.layout, rows) for bank in self._banks}
        return packed | _between(places, places)


def _between(sources: Sequence[int], targets: Sequence[int]) -> dict[str, np.ndarray]:
    return {FROM: np.array(sources), TO: np.array(targets)[:, None]}


def _device_id(session: ort.InferenceSession) -> int:
    return int(session.get_provider_options()[CUDA].get("device_id", 0))


def on_device(engine: Engine, settings: Settings) -> Engine:
    """The engine of the same artifact whose rows stay on the GPU that it runs on, or the engine as it is.

    Raises:
        ArtifactError: the file is no longer the one that was loaded.
    """
    if engine.provider != "cuda" or not settings.resident_mb or not engine.signature.batched:
        return engine
    content = engine.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != engine.fingerprint:
        raise ArtifactError(f"{engine.path} was replaced while it was loaded")
    slots = slots_for(engine, settings)
    try:
        made = _made(engine, content, settings, slots)
    except ort.ERRORS as error:
        log.warning("%s: rows do not stay on the GPU: %s", engine.path, ort.first_line(error))
        return engine
    log.info("%s: up to %d rows stay on the GPU", engine.path, slots)
    return made


class _Unfit(RuntimeError):
    """Why rows of a model do not stay."""


def _made(engine: Engine, content: bytes, settings: Settings, slots: int) -> ResidentEngine:
    if opset(content) < MIN_OPSET:
        raise _Unfit(f"its operators are of version {opset(content)}, not {MIN_OPSET}")
    if slots < 2:
        raise _Unfit(f"a row of {engine.layout.row_bytes} bytes is too large for resident_mb={settings.resident_mb}")
    opened = Opened.of(content, engine.signature, settings)
    strays = sorted(_on_cpu(opened.session) | _on_cpu(opened.putting))
    if strays:
        raise _Unfit(f"ONNX Runtime runs {', '.join(strays)} on the CPU")
    made = ResidentEngine(opened, engine, slots)
    if not _faithful(made, min(slots - 1, 5)):
        raise _Unfit("rows that stayed there came to something else than rows that were put there")
    return made


def _faithful(engine: ResidentEngine, rows: int) -> bool:
    """Whether rows that stay, and rows that are put there, come to what rows that come and go with each call come to,
    to the last bit: by running, not by faith."""
    random = np.random.default_rng(0)
    chunks = [random_chunk(engine.signature, 1, random) for _ in range(rows)]
    before = engine.run([engine.initial_row] * rows, chunks).rows
    stayed = engine.run(before, chunks).rows
    copies = [bytes(bytearray(row)) for row in before]
    return engine.run(copies, chunks).rows == stayed == Engine.begin(engine, copies, chunks)().rows


def slots_for(engine: Engine, settings: Settings) -> int:
    """How many rows stay: as many as there are live sessions and rows in two ticks, if memory allows."""
    useful = settings.max_live + 2 * settings.max_batch
    widest = max(bank.width for bank in banks_of(engine.signature))
    return min(useful, settings.resident_mb * _MIB // engine.layout.row_bytes, _MAX_NUMBERS // widest) - 1


def _on_cpu(session: ort.InferenceSession) -> set[str]:
    """Operators of ours that were put on the CPU: whole arenas would go back and forth."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return set()  # too old to tell
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != CUDA]
    ours = {n.op_type for part in parts for n in part.get_nodes() if n.name.startswith(PREFIX)}
    return ours & _MOVING
