"""What a session answers depends neither on who shares its ticks nor on how its input was cut up."""

import asyncio
import random
import string
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.engine.probe import probe
from service.engine.runtime import Engine, load_engine
from service.settings import Settings
from tests.support import artifacts
from tests.support.server import Server

SESSIONS, STEPS = 40, 300
SYMBOLS = string.ascii_letters + string.digits + " .,;:!?-\n"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of a size that people serve, and a forecast with two features."""
    return artifacts.repository(
        tmp_path_factory.mktemp("models"),
        language=lambda path: artifacts.language(path, SYMBOLS, layers=2, hidden=128),
        forecast=lambda path: artifacts.forecast(path, ("load", "wind"), layers=2, hidden=51),
    )


def _offline(repository: Path, name: str) -> Engine:
    engine = load_engine(repository / name / "1" / "model.onnx", Settings())
    probe(engine)
    assert engine.bit_exact
    return engine


async def _stream(client: httpx.AsyncClient, model: str, inputs: list[object], rng: random.Random) -> list[object]:
    """Send a sequence in random chunks, some longer than a tick takes; all outputs, in order."""
    session = (await client.post("/v1/sessions", json={"model": model})).headers["location"]
    outputs: list[object] = []
    while len(outputs) < len(inputs):
        size = rng.choice([1, 1, 1, 2, 3, 7, 20, 150])
        chunk = inputs[len(outputs) : len(outputs) + size]
        body = {"inputs": chunk, "position": len(outputs), "return": "all"}
        if model == "language":
            body["top_k"] = len(SYMBOLS)
        answer = await client.post(f"{session}/steps", json=body)
        assert answer.status_code == 200, answer.text
        told = answer.json()["outputs"]
        outputs += zip(told["tokens"], told["logprobs"], strict=True) if model == "language" else told["prediction"]
    return outputs


async def test_every_answer_equals_the_offline_run(repository: Path, tmp_path: Path) -> None:
    """Many sessions at once, in random chunks, beside generation and prediction: each bit as in one whole run."""
    rng = random.Random(7)
    texts = [[rng.randrange(len(SYMBOLS)) for _ in range(STEPS)] for _ in range(SESSIONS)]
    series = [[[rng.gauss(0, 1), rng.gauss(0, 1)] for _ in range(STEPS)] for _ in range(SESSIONS)]
    with Server(tmp_path, repository, max_batch=16) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=100)) as c:
            noise = asyncio.create_task(_noise(c))
            told = await asyncio.gather(
                *(_stream(c, "language", [*t], random.Random(i)) for i, t in enumerate(texts)),
                *(_stream(c, "forecast", [*s], random.Random(i)) for i, s in enumerate(series)),
            )
            noise.cancel()
    _check_language(_offline(repository, "language"), texts, told[:SESSIONS])
    _check_forecast(_offline(repository, "forecast"), series, told[SESSIONS:])


async def _noise(client: httpx.AsyncClient) -> None:
    while True:
        await client.post("/v1/models/language/generate", json={"text": "Noise", "max_steps": 30})
        await client.post("/v1/models/language/predict", json={"text": ["a" * 90, "bc"]})


def _check_language(engine: Engine, texts: list[list[int]], told: list[list[object]]) -> None:
    for tokens, answers in zip(texts, told, strict=True):
        run = engine.run([engine.initial_row], [(np.array(tokens),)])
        logprobs = run.outputs["logprobs"][0]  # [steps, symbols]
        for step, (order, values) in enumerate(answers):  # type: ignore[misc]
            assert np.array_equal(np.array(values, np.float32), logprobs[step][order]), f"step {step}"
            assert sorted(order) == list(range(len(SYMBOLS)))


def _check_forecast(engine: Engine, series: list[list[list[float]]], told: list[list[object]]) -> None:
    for values, answers in zip(series, told, strict=True):
        run = engine.run([engine.initial_row], [(np.array(values, np.float32),)])
        assert np.array_equal(np.array(answers, np.float32), run.outputs["prediction"][0])
