"""Models that others made, over HTTP: one row at a time and in batches, beside each other, exactly once."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support import artifacts, foreign
from tests.support.server import Server, create

SESSIONS, STEPS = 4, 6  # of each model
Body = dict[str, Any]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server over foreign models of several layouts, and one of ours."""
    folder = artifacts.repository(
        tmp_path_factory.mktemp("models"),
        audio=foreign.audio,
        counters=foreign.counters,
        delay=foreign.delay,
        frozen=foreign.frozen,
        looks_ahead=foreign.looks_ahead,
        sum=artifacts.running_sum,
    )
    with Server(tmp_path_factory.mktemp("server"), folder) as running:
        yield running


def audio(session: int, step: int) -> tuple[list[Any], Body]:
    """A chunk of equal samples a step, and what it has to come to."""
    sent = [session + 1 + k for k in range(step + 1)]
    sums = [foreign.SAMPLES * v + foreign.CONTEXT * before for v, before in zip(sent, [0, *sent], strict=False)]
    with np.errstate(over="raise"):
        energy = float(np.float16(sums[-1]))
    time = (step + 1) * foreign.SAMPLES * foreign.RATE
    return [[sent[-1]] * foreign.SAMPLES], {"energy": energy, "total": float(sum(sums)), "time": time, "loud": True}


def counters(session: int, step: int) -> tuple[Body, Body]:
    """Two steps of several inputs a request; the flag counts the first of them only."""
    sums, count = float((step + 1) * 2 * session), (step + 1) * (session + 1)
    sent = {"x": [[session, -session]] * 2, "gain": [session + 1, 9], "on": [True, False]}
    return sent, {"y": [sums, -sums], "total": count}


def delay(session: int, step: int) -> tuple[list[float], Body]:
    """A whole number a step, which comes out later than this test looks."""
    return [session], {"y": 0.0, "steps": step + 1}


def frozen(session: int, step: int) -> tuple[list[Any], Body]:
    """As many steps a request as the session's number tells."""
    steps = session + 1
    return [[1, session]] * steps, {"y": [float((step + 1) * steps), float((step + 1) * steps * session)]}


def summed(session: int, step: int) -> tuple[list[float], Body]:
    """One of ours."""
    return [session, 1], {"y": [float((step + 1) * (session + 1))]}


MODELS = {"audio": audio, "counters": counters, "delay": delay, "frozen": frozen, "sum": summed}


async def drive(client: httpx.AsyncClient, model: str, number: int) -> None:
    """One session: every step sent twice, and only one of them applied."""
    location = (await client.post("/v1/sessions", json={"model": model})).headers["location"]
    position = 0
    for step in range(STEPS):
        inputs, expected = MODELS[model](number, step)
        body = {"inputs": inputs, "position": position}
        first, second = await asyncio.gather(*(client.post(f"{location}/steps", json=body) for _ in range(2)))
        assert first.status_code == 200, first.text
        assert first.content == second.content
        assert sum("idempotent-replayed" in answer.headers for answer in (first, second)) == 1
        assert first.json()["outputs"] == expected
        position = first.json()["position"]


async def test_sessions_of_all_models_interleave(serving: Server) -> None:
    """Many sessions at once, of models in every layout: each is answered its own sums, and nothing twice."""
    async with httpx.AsyncClient(base_url=serving.url, timeout=30.0) as client, asyncio.TaskGroup() as group:
        for model in MODELS:
            for number in range(SESSIONS):
                group.create_task(drive(client, model, number))


def test_a_state_of_every_type_survives_a_kill(tmp_path: Path) -> None:
    """After SIGKILL the session goes on where it was, and a repeat is told the same bytes."""
    folder = artifacts.repository(tmp_path / "models", audio=foreign.audio, counters=foreign.counters)
    with Server(tmp_path, folder) as server:
        with server.client() as client:
            paths = {model: create(client, model) for model in ("audio", "counters")}
            bodies = {model: {"inputs": MODELS[model](1, 0)[0], "position": 0} for model in paths}
            told = {model: client.post(f"{path}/steps", json=bodies[model]) for model, path in paths.items()}
        server.kill()
        server.start()
        with server.client() as client:
            for model, path in paths.items():
                again = client.post(f"{path}/steps", json=bodies[model])
                assert again.content == told[model].content
                assert again.headers["idempotent-replayed"] == "true"
                inputs, expected = MODELS[model](1, 1)
                assert client.post(f"{path}/steps", json={"inputs": inputs}).json()["outputs"] == expected


def test_a_model_tells_how_it_is_called(serving: Server) -> None:
    """Whether rows share a call, how many steps it takes, and what its proof has shown."""
    with serving.client() as client:
        models = {m["name"]: m for m in client.get("/v1/models").json()["models"]}
    told = {name: (m["batched"], m["lengths"], m["steps_per_call"]) for name, m in models.items()}
    assert told["audio"] == (False, None, 1)
    assert told["frozen"] == (False, None, None)
    assert told["delay"] == (True, None, 1)
    assert told["sum"] == (True, "lengths", None)
    assert models["sum"]["proof"] is None
    assert models["looks_ahead"]["proof"]["chunked"] is False
    assert models["audio"]["state_bytes"] == foreign.CONTEXT * 4 + 8 + 8


def test_predictions_run_whole_sequences_step_by_step(serving: Server) -> None:
    """Of a model without a time axis a sequence is a call for each step; all steps are shown when asked for."""
    body = {"inputs": [[[1] * foreign.SAMPLES] * 3, [[-1] * foreign.SAMPLES]], "return": "all"}
    with serving.client() as client:
        first, second = client.post("/v1/models/audio/predict", json=body).json()["outputs"]
    assert first["total"] == [512.0, 1028.0, 1544.0]
    assert second == {"energy": [-512.0], "total": [-512.0], "time": [512 * foreign.RATE], "loud": [False]}


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"x": [[1, 2]], "gain": [0.5], "on": [True]}, "inputs.gain[0]"),
        ({"x": [[1, 2]], "gain": [2**31], "on": [True]}, "inputs.gain[0]"),
        ({"x": [[1, 2]], "gain": [1], "on": [1]}, "inputs.on[0]"),
        ({"x": [[1, 2], [3, 4]], "gain": [1], "on": [True]}, "inputs"),
        ([[1, 2]], "inputs"),
    ],
)
def test_what_does_not_fit_one_of_several_inputs_is_named(serving: Server, inputs: object, field: str) -> None:
    """A 422 with the field; the session has not moved."""
    with serving.client() as client:
        session = create(client, "counters")
        refused = client.post(f"{session}/steps", json={"inputs": inputs})
        assert (refused.status_code, refused.json()["field"]) == (422, field)
        assert client.get(session).json()["position"] == 0
