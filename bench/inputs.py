"""Chunks that a model takes, made up from what the service tells of it and written as JSON beforehand."""

import json
import math
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

from bench.messages import HEADER

VARIETY = 64  # chunks that are made; a session begins at one of them and goes round


def chunks(model: Mapping[str, Any], steps: int, seed: int, *, binary: bool = False) -> list[bytes]:
    """The members of a body that hold the inputs of ``steps`` steps, without braces: ``"inputs":[17],"top_k":1``.

    With ``binary`` a binary message of a stream instead, for position 0. A language model gets tokens of its vocabulary
    and is asked for one symbol; features are normally distributed, whole numbers are 0 or 1, as they may name a row of
    a table.
    """
    chance = random.Random(seed)
    write = _message if binary else _members
    return [write(model, _drawn(model, steps, chance)) for _ in range(VARIETY)]


def _drawn(model: Mapping[str, Any], steps: int, chance: random.Random) -> dict[str, list[Any]]:
    """The steps of each input, by its name."""
    if (vocabulary := model["vocabulary"]) is not None:
        return {model["inputs"][0]["name"]: [chance.randrange(len(vocabulary)) for _ in range(steps)]}
    return {spec["name"]: [_step(spec, chance) for _ in range(steps)] for spec in model["inputs"]}


def _members(model: Mapping[str, Any], drawn: Mapping[str, list[Any]]) -> bytes:
    inputs = drawn if len(drawn) > 1 else next(iter(drawn.values()))
    top_k = {"top_k": 1} if model["vocabulary"] is not None else {}
    return json.dumps({"inputs": inputs} | top_k, separators=(",", ":"))[1:-1].encode()


def _message(model: Mapping[str, Any], drawn: Mapping[str, list[Any]]) -> bytes:
    steps = len(next(iter(drawn.values())))
    header = HEADER.pack(0, 0, int(model["vocabulary"] is not None), steps, 0)
    return header + b"".join(_packed(_CODES[spec["dtype"]], drawn[spec["name"]]) for spec in model["inputs"])


def _packed(code: str, numbers: Any) -> bytes:  # noqa: ANN401 - see above
    if isinstance(numbers, list):
        return b"".join(_packed(code, number) for number in numbers)
    return struct.pack(f"<{code}", numbers)


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


_CODES = {"bool": "?", "int32": "i", "int64": "q", "float16": "e", "float32": "f", "float64": "d"}
_DRAWS: dict[str, Callable[[random.Random], float]] = {
    "bool": lambda chance: chance.random() < 0.5,
    "int32": lambda chance: chance.randrange(2),
    "int64": lambda chance: chance.randrange(2),
}
