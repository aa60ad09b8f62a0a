"""Models that others made, exported by torch, adopted and served, agree with PyTorch run offline."""

import asyncio
import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from export.adoption.adopting import adopt_file
from export.adoption.wishes import Wishes
from tests.support.modules import MODULES, Detector, Foreign, export_file
from tests.support.server import Server

SESSIONS, STEPS = 20, 1000
SAMPLES = 32  # of the detector's chunk: 512 would be 10 million numbers of JSON
CHUNKS = (1, 3, 20, 64, 130, 250)  # steps of a request

# What is served, by which exporter it is made, and what it may differ from PyTorch at any of the 1,000 steps, in units
# of 1 or of the value where that is larger. A float16 state rounds to another of its numbers where float32 differs in
# the last digit.
SERVED = {
    "detector": ("dynamo", 1e-5),
    "compact": ("dynamo", 2e-3),
    "smoother": ("torchscript", 1e-12),
    "denoiser": ("torchscript", 1e-5),
    "tracker": ("torchscript", 1e-5),
    "fusion": ("torchscript", 1e-5),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Modules of this size gain nothing from threads, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _foreign(name: str) -> Foreign:
    if name != "detector":
        return MODULES[name]
    return dataclasses.replace(
        MODULES[name], build=lambda: Detector(window=16), inputs=lambda: {"chunk": torch.randn(2, SAMPLES)}
    )


async def test_adopted_models_agree_with_pytorch(tmp_path: Path) -> None:
    """20 interleaved sessions of each of six models, 1,000 steps each, in chunks of any length."""
    modules: dict[str, nn.Module] = {}
    for name, (exporter, _) in SERVED.items():
        torch.manual_seed(len(modules))
        modules[name] = _foreign(name).build()
        file = export_file(modules[name], _foreign(name), tmp_path / f"{name}.onnx", dynamo=exporter == "dynamo")
        wishes = Wishes(
            constants={key: value.numpy() for key, value in _foreign(name).constants.items()},
            initial={key: _row(value) for key, value in _foreign(name).states().items() if _moved(value)},
        )
        adopt_file(file, tmp_path / "repository" / name / "1", wishes, Console(quiet=True))
    inputs = {name: _inputs(_foreign(name)) for name in SERVED}
    with Server(tmp_path, tmp_path / "repository") as server:
        async with httpx.AsyncClient(
            base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=len(SERVED) * SESSIONS)
        ) as c:
            told = await asyncio.gather(
                *(
                    _stream(c, name, {k: v[i] for k, v in inputs[name].items()}, i)
                    for name in SERVED
                    for i in range(SESSIONS)
                )
            )
    for at, (name, (_, tolerance)) in enumerate(SERVED.items()):
        expected = _offline(modules[name], _foreign(name), inputs[name])
        for i, answer in enumerate(told[at * SESSIONS : (at + 1) * SESSIONS]):
            for output, want in expected.items():
                have = np.array(answer[output], np.float64)
                error = np.abs(have - want[i]) / np.maximum(1, np.abs(want[i]))
                assert have.shape == want[i].shape
                assert error.max() <= tolerance, f"{name}, session {i}, {output}, step {error.argmax(axis=0)}"


_Arrays = dict[str, np.ndarray]


def _moved(value: object) -> bool:
    return isinstance(value, Tensor) and bool(value.any())


def _row(value: object) -> np.ndarray:
    assert isinstance(value, Tensor)
    row: np.ndarray = value[0].numpy()
    return row


def _inputs(foreign: Foreign) -> _Arrays:
    """For every session its own inputs [sessions, steps, *step shape]."""
    random = np.random.default_rng(5)
    found = {}
    for name, example in foreign.inputs().items():
        rest = [n for axis, n in enumerate(example.shape) if axis not in (foreign.batch_axis, foreign.time_axis)]
        shape = (SESSIONS, STEPS, *rest)
        drawn = random.standard_normal(shape) if example.is_floating_point() else random.integers(0, 4, shape)
        found[name] = drawn.round(3).astype(example.numpy().dtype)  # short numbers: less JSON
    return found


async def _stream(client: httpx.AsyncClient, model: str, inputs: _Arrays, seed: int) -> dict[str, list[object]]:
    """Send a session's steps in random chunks; all outputs by name."""
    rng = random.Random(seed)
    session = (await client.post("/v1/sessions", json={"model": model})).headers["location"]
    outputs: dict[str, list[object]] = {}
    at = 0
    while at < STEPS:
        size = rng.choice(CHUNKS)
        chunk = {name: values[at : at + size] for name, values in inputs.items()}
        body = orjson.dumps({"inputs": chunk, "position": at, "return": "all"}, option=orjson.OPT_SERIALIZE_NUMPY)
        answer = await client.post(f"{session}/steps", content=body)
        assert answer.status_code == 200, answer.text
        told = orjson.loads(answer.content)
        for name, values in told["outputs"].items():
            outputs.setdefault(name, []).extend(values)
        at = told["position"]
    return outputs


def _offline(module: nn.Module, foreign: Foreign, inputs: _Arrays) -> _Arrays:
    """What PyTorch makes of all sessions: each output [sessions, steps, *step shape]; whole, or call by call."""
    states = {name: _for_all(value, foreign.state_axes.get(name, 0)) for name, value in foreign.states().items()}
    whole = foreign.time_axis is not None
    pieces = [(0, STEPS)] if whole else [(at, at + 1) for at in range(STEPS)]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in foreign.outputs}
    source = (foreign.batch_axis, foreign.time_axis if foreign.time_axis is not None else foreign.batch_axis)
    for start, end in pieces:
        fed = {name: torch.from_numpy(values[:, start:end]) for name, values in inputs.items()}
        fed = {name: t.movedim((0, 1), source) if whole else t[:, 0] for name, t in fed.items()}
        with torch.no_grad():
            answer = dict(zip(foreign.returned(), module(**fed, **states, **foreign.constants), strict=True))
        states = {name: answer[name] for name in states}
        for name in foreign.outputs:
            told = answer[name].movedim(source, (0, 1)) if whole else answer[name][:, None]
            parts[name].append(told.double().numpy())
    return {name: np.concatenate(arrays, axis=1) for name, arrays in parts.items()}


def _for_all(value: object, axis: int) -> object:
    """An example state for every session."""
    if isinstance(value, Tensor):
        return value.narrow(axis, 0, 1).repeat_interleave(SESSIONS, axis)
    assert isinstance(value, list)
    return [_for_all(part, axis) for part in value]
