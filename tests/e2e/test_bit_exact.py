"""What a session answers depends neither on who shares its ticks nor on how its input was cut up, in every cell."""

import asyncio
import random
import string
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from export.cells import CELLS
from service.engine.probe import probe
from service.engine.runtime import Engine, load_engine
from service.sampling import Sampling, sample
from service.settings import Settings
from tests.support import artifacts
from tests.support.server import Server

SESSIONS, STEPS = 6, 120  # of each model
SYMBOLS = string.ascii_letters + string.digits + " .,;:!?-\n"
FEATURES = ("load", "wind")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model and a forecast of each cell; the LSTM's language model is of a size that people serve."""
    writers: dict[str, artifacts.Writer] = {}
    for cell in CELLS:
        symbols, hidden = (SYMBOLS, 128) if cell == "lstm" else (SYMBOLS[:9], 24)
        writers[f"language-{cell}"] = partial(
            artifacts.language, vocabulary=symbols, layers=2, hidden=hidden, cell=cell
        )
        writers[f"forecast-{cell}"] = partial(artifacts.forecast, features=FEATURES, layers=2, hidden=51, cell=cell)
    return artifacts.repository(tmp_path_factory.mktemp("models"), **writers)


@pytest.fixture(scope="module")
def engines(repository: Path) -> dict[str, Engine]:
    """The same artifacts, run offline."""
    loaded = {path.name: load_engine(path / "1" / "model.onnx", Settings()) for path in sorted(repository.iterdir())}
    for engine in loaded.values():
        probe(engine)
        assert engine.bit_exact
    return loaded


@dataclass
class Generated:
    """A generation: what the session had consumed before it, its seed, what it fed itself, and what it told of that."""

    before: int
    seed: int | None
    fed: list[Any]
    logprobs: list[float] | None


@dataclass
class Session:
    """A session that steps and generates at random; what it has consumed, and every answer."""

    model: str
    symbols: int
    rng: random.Random
    consumed: list[Any] = field(default_factory=list)
    answers: dict[int, Any] = field(default_factory=dict)  # by the position of the step
    generated: list[Generated] = field(default_factory=list)

    async def run(self, client: httpx.AsyncClient) -> None:
        """Until it has consumed its steps, each request as soon as the one before is answered."""
        path = (await client.post("/v1/sessions", json={"model": self.model})).headers["location"]
        while len(self.consumed) < STEPS:
            if self.consumed and self.rng.random() < 0.2:
                await self._generate(client, path)
            else:
                await self._step(client, path)

    async def _post(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await client.post(path, json={"position": len(self.consumed), **body})
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()["outputs"]
        return told

    async def _step(self, client: httpx.AsyncClient, path: str) -> None:
        """A chunk of random size, some longer than a tick takes."""
        chunk = [self._draw() for _ in range(self.rng.choice([1, 1, 1, 2, 3, 7, 20, 90]))]
        body = {"inputs": chunk, "return": "all"} | ({"top_k": self.symbols} if self.symbols else {})
        told = await self._post(client, f"{path}/steps", body)
        answers = zip(told["tokens"], told["logprobs"], strict=True) if self.symbols else told["prediction"]
        self.answers |= dict(enumerate(answers, len(self.consumed)))
        self.consumed += chunk

    async def _generate(self, client: httpx.AsyncClient, path: str) -> None:
        """A few steps, that may become part of the session or not."""
        steps, advance = self.rng.randrange(1, 9), self.rng.random() < 0.5
        seed = self.rng.randrange(1000) if self.symbols else None
        body = {"max_steps": steps, "advance": advance} | ({"seed": seed} if self.symbols else {})
        told = await self._post(client, f"{path}/generate", body)
        fed = told["tokens" if self.symbols else "prediction"]
        assert len(fed) == steps
        self.generated.append(Generated(len(self.consumed), seed, fed, told.get("logprobs")))
        self.consumed += fed if advance else []

    def _draw(self) -> int | list[float]:
        if self.symbols:
            return self.rng.randrange(self.symbols)
        return [self.rng.gauss(0, 1) for _ in FEATURES]


async def test_every_answer_equals_the_offline_run(
    repository: Path, engines: dict[str, Engine], tmp_path: Path
) -> None:
    """Many sessions of every cell at once, in random chunks, generating in between: each bit as in one whole run."""
    symbols = {model: len(engine.signature.vocabulary or ()) for model, engine in engines.items()}
    sessions = [Session(model, symbols[model], random.Random(i)) for i in range(SESSIONS) for model in engines]
    with Server(tmp_path, repository, max_batch=4) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=200)) as c:
            noise = asyncio.create_task(_noise(c))
            await asyncio.gather(*(session.run(c) for session in sessions))
            noise.cancel()
    for session in sessions:
        _check(engines[session.model], session)


async def _noise(client: httpx.AsyncClient) -> None:
    while True:
        await client.post("/v1/models/language-lstm/generate", json={"text": "Noise", "max_steps": 30})
        await client.post("/v1/models/language-lstm/predict", json={"text": ["a" * 90, "bc"]})


def _run(engine: Engine, inputs: list[Any]) -> np.ndarray:
    """The outputs of one whole sequence, alone: [steps, *step shape]."""
    chunk = np.array(inputs, engine.signature.inputs[0].dtype)
    outputs: np.ndarray = engine.run([engine.initial_row], [(chunk,)]).outputs[engine.signature.outputs[0].name][0]
    return outputs


def _check(engine: Engine, session: Session) -> None:
    """Every answer bit for bit, and every symbol or value that the session fed itself."""
    whole = _run(engine, session.consumed)
    for position, answer in session.answers.items():
        if session.symbols:
            order, told = answer
            assert sorted(order) == list(range(session.symbols))
            assert np.array_equal(np.array(told, np.float32), whole[position][order]), (session.model, position)
        else:
            assert np.array_equal(np.array(answer, np.float32), whole[position]), (session.model, position)
    for generated in session.generated:
        _check_generated(engine, session, generated)


def _check_generated(engine: Engine, session: Session, generated: Generated) -> None:
    outputs = _run(engine, session.consumed[: generated.before] + generated.fed)
    for position, fed in enumerate(generated.fed, generated.before):
        last = outputs[position - 1]  # what the step was drawn from, or is
        if generated.seed is not None:
            assert sample(last[None], [Sampling(1.0, 0, 1.0, generated.seed)], [position])[0] == fed
        else:
            assert np.array_equal(np.array(fed, np.float32), last), (session.model, position)
    if generated.logprobs is not None:
        before = outputs[generated.before - 1 : -1]  # [steps, symbols]
        chosen = np.take_along_axis(before, np.array(generated.fed)[:, None], axis=1)[:, 0]
        assert np.array_equal(np.array(generated.logprobs, np.float32), chosen), session.model
