"""ONNX Runtime alone, and the sessions without HTTP: what is measured in the process of the measurement itself."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import numpy as np

from bench.errors import BenchError
from service import store_url
from service.clock import SystemClock
from service.engine.providers import open_session
from service.engine.repository import load_repository
from service.engine.runtime import Engine
from service.metrics import Metrics
from service.models import Model, Models
from service.sampling import Sampling
from service.sessions.requests import Advance, Generate
from service.sessions.sessions import Sessions
from service.settings import load_settings
from service.stores.opening import open_store
from service.views import View

TICKS_S = 0.3  # of CPU time, for ticks of ONNX Runtime alone
CUTS = (256, 1024)  # steps of a call: what suits ONNX Runtime best for a long chunk is one of these, or one call
_OWNER = ""


class Bare:
    """ONNX Runtime alone with the artifact of an engine: no rows to gather, nothing to check, nothing kept."""

    def __init__(self, engine: Engine) -> None:
        self._session = open_session(engine.path.read_bytes(), load_settings(provider="cpu"))
        self._names = [output.name for output in self._session.get_outputs()]
        self._signature = engine.signature
        self._states = engine.layout.gather([engine.initial_row])

    def tick_us(self, rows: int, steps: int = 1) -> float:
        """µs of CPU per row and step for ticks of so many rows and steps."""
        feed, ticks = self._feed(np.ones((rows, steps), np.int64)), 0
        self._session.run(self._names, feed)  # the first call of a shape plans its memory
        began_s = time.process_time()
        while (took_s := time.process_time() - began_s) < TICKS_S:
            self._session.run(self._names, feed)
            ticks += 1
        return took_s / ticks / rows / steps * 1e6

    def prefill_us(self, tokens: list[int]) -> float:
        """µs per step of one row, in the cut that suits ONNX Runtime best."""
        return min(self._prefill_s(np.array(tokens), size) for size in (*CUTS, len(tokens))) / len(tokens) * 1e6

    def _prefill_s(self, tokens: np.ndarray, size: int) -> float:
        states, began_s = dict[str, np.ndarray](), time.perf_counter()
        for start in range(0, len(tokens), size):
            feed = self._feed(tokens[None, start : start + size]) | states
            fetched = dict(zip(self._names, self._session.run(self._names, feed), strict=True))
            states = {state.input: fetched[state.output] for state in self._signature.states}
        return time.perf_counter() - began_s

    def _feed(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """All that the graph takes, from the initial state on; ``tokens`` [rows, steps]."""
        signature, (spec,), (rows, steps) = self._signature, self._signature.inputs, tokens.shape
        feed = {s.input: np.repeat(self._states[s.input], rows, s.batch_axis) for s in signature.states}
        feed[spec.name] = np.ascontiguousarray(tokens if spec.batch_axis == 0 else tokens.T, spec.dtype)
        feed |= {name: tensor.array() for name, tensor in signature.constants.items()}
        if signature.lengths is not None:
            feed[signature.lengths] = np.full(rows, steps, np.int32)
        return feed


class Inside:
    """The sessions of the service in this process, with SQLite commits; each has read one symbol."""

    def __init__(self, sessions: Sessions, model: Model) -> None:
        self._sessions = sessions
        self._ids: list[str] = []
        self.model = model

    @classmethod
    @asynccontextmanager
    async def open(cls, models: Path, store: Path, name: str, streams: int) -> "AsyncIterator[Self]":
        """Build them as the server does, and create so many sessions of the model of this name."""
        settings = load_settings(model_repository=models, store=f"sqlite:{store}", provider="cpu")
        kept = open_store(store_url.parse(settings.store), settings.durability)
        clock, metrics = SystemClock(), Metrics()
        loaded, _ = load_repository(settings.model_repository, settings)
        served = Models([Model(m, settings, kept, clock, metrics) for m in loaded])
        inside = cls(Sessions(served, kept, settings, clock, metrics), served.find(name))
        inside._sessions.start()
        try:
            await inside._create(streams)
            yield inside
        finally:
            await inside._sessions.close()

    async def _create(self, count: int) -> None:
        first = Advance((np.ones(1, self.model.signature.inputs[0].dtype),), View(top_k=1))
        for _ in range(count):
            record = await self._sessions.create(self.model.name, None, None, _OWNER)
            self._ids.append(record.identity.id)
            await self._sessions.advance(self._ids[-1], first, _OWNER)

    async def token_us(self, steps: int) -> float:
        """µs of CPU per token when all sessions stream so many steps at once."""
        began_s = time.process_time()
        told = sum(await asyncio.gather(*(self._read(id, seed, steps) for seed, id in enumerate(self._ids))))
        if told != len(self._ids) * steps:
            raise BenchError(f"{told} tokens were told where {len(self._ids) * steps} were asked for")
        return (time.process_time() - began_s) / told * 1e6

    async def _read(self, id: str, seed: int, steps: int) -> int:
        request = Generate(steps, Sampling(1.0, 0, 1.0, seed))
        return sum([told.steps async for told in self._sessions.generate_stream(id, request, _OWNER)])
