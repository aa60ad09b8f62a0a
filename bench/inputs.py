"""Chunks that a model takes, made up from what the service tells of it and written as JSON beforehand."""

import json
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

VARIETY = 64  # chunks that are made; a session begins at one of them and goes round


def chunks(model: Mapping[str, Any], steps: int, seed: int) -> list[bytes]:
    """The members of a body that hold the inputs of ``steps`` steps, without braces: ``"inputs":[17],"top_k":1``.

    A language model gets tokens of its vocabulary and is asked for one symbol; features are normally distributed,
    whole numbers are 0 or 1, as they may name a row of a table.
    """
    chance = random.Random(seed)
    return [_members(model, steps, chance) for _ in range(VARIETY)]


def _members(model: Mapping[str, Any], steps: int, chance: random.Random) -> bytes:
    vocabulary = model["vocabulary"]
    inputs: Any
    if vocabulary is not None:
        inputs = [chance.randrange(len(vocabulary)) for _ in range(steps)]
    else:
        by_name = {spec["name"]: [_step(spec, chance) for _ in range(steps)] for spec in model["inputs"]}
        inputs = by_name if len(by_name) > 1 else next(iter(by_name.values()))
    told = json.dumps({"inputs": inputs} | ({"top_k": 1} if vocabulary is not None else {}), separators=(",", ":"))
    return told[1:-1].encode()


def _step(spec: Mapping[str, Any], chance: random.Random) -> Any:  # noqa: ANN401 - numbers in as many lists as axes
    """One step of an input: what is left of its shape without the batch and the time axis."""
    axes = (spec["batch_axis"], spec["time_axis"])
    shape = [length or 1 for axis, length in enumerate(spec["shape"]) if axis not in axes]
    draw = _DRAWS.get(spec["dtype"], _feature)
    numbers: Any = [draw(chance) for _ in range(math.prod(shape))]
    for length in reversed(shape):
        numbers = [numbers[i : i + length] for i in range(0, len(numbers), length)]
    return numbers[0]


def _feature(chance: random.Random) -> float:
    return round(chance.gauss(0, 1), 4)


_DRAWS: dict[str, Callable[[random.Random], float]] = {
    "bool": lambda chance: chance.random() < 0.5,
    "int32": lambda chance: chance.randrange(2),
    "int64": lambda chance: chance.randrange(2),
}
