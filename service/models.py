"""The models that are served: for each an engine, its stepper and its batcher, found by name or by fingerprint."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from service.batching import Batcher
from service.clock import Clock
from service.engine.gates import Inspector
from service.engine.repository import LoadedModel, cores
from service.engine.runtime import Engine
from service.errors import OutcomeUnknown, UnknownModel, UnsupportedTask
from service.items import Item, Stepped
from service.metrics import Metrics
from service.pipeline import Overlap
from service.settings import Settings
from service.sizes import like_length, same_length
from service.state import Record
from service.step import Begun, Stepper
from service.stores.base import Store
from service.work import Call, Work


class ItemWork(Work, Protocol):
    """A work whose tick runs ``item``."""

    @property
    def item(self) -> Item:
        """The row, asked for once the work has started."""
        ...


class Model:
    """One version of one model, ready to run."""

    def __init__(self, loaded: LoadedModel, settings: Settings, store: Store, clock: Clock, metrics: Metrics) -> None:
        self.name, self.version = loaded.name, loaded.version
        self.engine = engine = loaded.engine
        self.signature = engine.signature
        self.fingerprint = engine.fingerprint
        self.choice = loaded.chosen(settings)
        self.inspector = Inspector(engine, settings)
        self.clock = clock
        self.metrics = metrics.of_model(self.name)
        proof = engine.signature.proof
        # Cutting and folding change nothing that a client can see only where answers are bit-exact; of a model whose
        # sequences may not be cut they change more than the last bits.
        exact = (engine.bit_exact or settings.allow_inexact) and (proof is None or proof.chunked)
        self.segment_steps = settings.segment_steps if exact else settings.max_steps
        if not engine.signature.has_time_axis:
            self.segment_steps = 1
        self.folds = exact and self.segment_steps > 1
        self.lone_segment_s = settings.lone_segment_ms / 1000 if self.folds else 0.0
        # A chunk that is little longer than a segment is not worth a turn: it runs and is committed with a tick.
        self.whole_steps = self.segment_steps * (2 if self.folds else 1)
        self._stepper = Stepper(engine, store, clock, self.metrics, keep_answer_bytes=settings.keep_answer_bytes)
        self.batcher: Batcher[ItemWork] = Batcher(
            self._begin,
            finish=self._stepper.finish,
            overlap=overlap_of(settings, engine, self.choice.threads),
            name=f"tick-{self.name}-{self.version}",
            max_batch=self.choice.max_batch,
            max_cells=settings.max_cells,
            inline_s=0.0 if store.remote else settings.inline_ms / 1000,
            capacity=settings.max_queue,
            like=like_length if engine.ragged else same_length,
            clock=clock,
            observer=self.metrics,
            unknown=OutcomeUnknown("the service ended before the session store had answered"),
        )
        metrics.waiting.labels(self.name, self.version).set_function(lambda: self.batcher.waiting)

    def _begin(self, works: Sequence[ItemWork]) -> Begun:
        return self._stepper.begin([work.item for work in works])

    def check_generates(self) -> None:
        """UnsupportedTask unless the model's output can be fed back to it."""
        if self.signature.task == "generic" or len(self.signature.inputs) > 1:
            raise UnsupportedTask(
                f"model {self.name!r} cannot generate: it is neither a language nor a forecast model with one input"
            )

    def check_gates(self) -> None:
        """UnsupportedTask unless the gates at a session's last steps can be computed again."""
        proof = self.signature.proof
        if not self.signature.recurrences:
            raise UnsupportedTask(
                f"version {self.version} of model {self.name!r} has no gates to show: its artifact names no RNN, GRU "
                "or LSTM with constant weights in float32",
                field="gates",
            )
        if proof is not None and not proof.chunked:
            raise UnsupportedTask(
                f"the gates of model {self.name!r} cannot be shown: its sequences may not be cut", field="gates"
            )

    async def run(self, item: Item, steps: int, deadline: float, *, admitted: bool) -> Stepped:
        """Run one item through the batcher; what its row or its tick failed with is raised."""
        work = Call(item, steps, self.clock, deadline, self.metrics.dropped)
        self.batcher.submit(work, admitted=admitted)
        stepped: Stepped = await work.future
        return stepped


def overlap_of(settings: Settings, engine: Engine, threads: int) -> Overlap:
    """What ``overlap`` means for this engine: with all processors computing, none is left to do something meanwhile."""
    if settings.overlap == "on" or (settings.overlap == "auto" and engine.provider == "cuda"):
        return Overlap.WHEN_LONG
    return Overlap.OFF if settings.overlap == "off" or threads >= cores() else Overlap.IN_TURNS


class Models:
    """All loaded models."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.all = tuple(models)
        # The same artifact may stand in the repository twice: a session then stays with the name that it began with.
        self._by_identity = {(m.fingerprint, m.name, m.version): m for m in models}
        self._by_fingerprint = {m.fingerprint: m for m in models}

    def find(self, name: str, version: str | None = None) -> Model:
        """The named version of a model, or its highest; UnknownModel when there is none."""
        versions = [m for m in self.all if m.name == name]
        if not versions:
            raise UnknownModel(f"there is no model {name!r}", field="model")
        if version is None:
            return max(versions, key=lambda m: int(m.version))
        for model in versions:
            if model.version == version:
                return model
        have = ", ".join(m.version for m in versions)
        raise UnknownModel(f"model {name!r} has no version {version!r} (there is {have})", field="version")

    def of(self, record: Record) -> Model | None:
        """The model that a session is pinned to, if it is loaded."""
        i = record.identity
        return self._by_identity.get((i.fingerprint, i.model, i.version)) or self._by_fingerprint.get(i.fingerprint)

    @property
    def alive(self) -> bool:
        """Whether every model's batcher runs."""
        return all(m.batcher.alive for m in self.all)

    def start(self) -> None:
        """Start the batchers, in the running event loop."""
        for model in self.all:
            model.batcher.start()

    async def close(self, within_s: float) -> None:
        """Finish what was accepted and end the batchers."""
        await asyncio.gather(*(model.batcher.close(within_s) for model in self.all))
