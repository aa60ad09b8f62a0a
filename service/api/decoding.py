"""From a JSON body to chunks: values held against the model's signature, faults named by field."""

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from service.api.problems import field_name
from service.artifact import Signature, TensorSpec
from service.errors import InvalidInput, TooLarge
from service.state import Chunk

_EXAMPLES = {"language": "token ids such as [17, 4]", "forecast": "numbers", "generic": "numbers"}


def length(value: object) -> int:
    """How many steps a JSON value or text says it has, without a look at any of them."""
    if isinstance(value, Mapping):
        return max(map(length, value.values()), default=0)
    return len(value) if isinstance(value, list | str) else 0


def check_steps(steps: int, limit: int, field: str) -> None:
    """TooLarge beyond the limit."""
    if steps > limit:
        raise TooLarge(f"at most {limit} steps in one request, got {steps}", field=field)


def decode_chunk(
    signature: Signature, inputs: object, text: str | None, field: str = "inputs", *, max_steps: int
) -> Chunk:
    """The chunk of one row from its JSON value or text; InvalidInput names what does not fit.

    A chunk of more than ``max_steps`` is TooLarge before any of its values is looked at.
    """
    if text is not None:
        if inputs is not None:
            raise InvalidInput("send either text or inputs, not both", field="text")
        field = "text" + field.removeprefix("inputs")
        check_steps(len(text), max_steps, field)
        return (_tokens(signature, text, field),)
    check_steps(length(inputs), max_steps, field)
    if inputs is None:
        kind = "text or inputs" if signature.task == "language" else "inputs"
        raise InvalidInput(f"{kind} missing: expected {_EXAMPLES[signature.task]}, one entry per step", field=field)
    if isinstance(inputs, Mapping):
        return _by_name(signature, inputs, field)
    if len(signature.inputs) > 1:
        names = ", ".join(i.name for i in signature.inputs)
        raise InvalidInput(f"the model has several inputs: expected an object with {names}", field=field)
    return (_array(signature, signature.inputs[0], inputs, field),)


def single_token(signature: Signature, inputs: object) -> int:
    """The token of a list of one good token, by far the most frequent chunk, seen at a glance; -1 for all else."""
    if type(inputs) is list and len(inputs) == 1 and type(inputs[0]) is int:
        token: int = inputs[0]
        return token if 0 <= token < signature.symbols else -1
    return -1


def _by_name(signature: Signature, inputs: Mapping[str, object], field: str) -> Chunk:
    names = [spec.name for spec in signature.inputs]
    for name in inputs:
        if name not in names:
            raise InvalidInput(f"the model has no input {name!r} (it has {', '.join(names)})", field=f"{field}.{name}")
    arrays = []
    for spec in signature.inputs:
        if spec.name not in inputs:
            raise InvalidInput(f"input {spec.name!r} is missing", field=f"{field}.{spec.name}")
        arrays.append(_array(signature, spec, inputs[spec.name], f"{field}.{spec.name}"))
    if len({len(a) for a in arrays}) > 1:
        raise InvalidInput("the inputs differ in their number of steps", field=field)
    return tuple(arrays)


def _tokens(signature: Signature, text: str, field: str) -> np.ndarray:
    if signature.vocabulary is None:
        raise InvalidInput("the model is no language model: it takes inputs, not text", field=field)
    if not text:
        raise InvalidInput("the text is empty: at least one symbol is needed", field=field)
    index = _index(signature.vocabulary)
    try:
        tokens = [index[symbol] for symbol in text]
    except KeyError as error:
        at = text.index(error.args[0])
        raise InvalidInput(
            f"symbol {error.args[0]!r} (character {at}) is not in the model's vocabulary", field=field
        ) from error
    return np.array(tokens, signature.inputs[0].dtype)  # [steps]


def _array(signature: Signature, spec: TensorSpec, value: object, field: str) -> np.ndarray:
    """A JSON value as [steps, *step shape]; a step of one number may be written without its brackets."""
    symbols = len(signature.vocabulary) if signature.vocabulary is not None and spec is signature.inputs[0] else None
    depth = len(spec.step_shape)
    if spec.step_shape == (1,) and isinstance(value, list) and value and not isinstance(value[0], list):
        depth = 0
    elif isinstance(value, list):
        _check_widths(value, spec, spec.step_shape, field)
    try:
        checked = _adapter(spec.dtype, depth, symbols).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        name = field + field_name(["", *first["loc"]])
        raise InvalidInput(f"{name}: {first['msg']}; expected {_expected(spec)}", field=name) from error
    try:
        array = _cast(checked, spec.dtype)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{field}: steps of different shapes; expected {_expected(spec)}", field=field) from error
    if array.shape[1:] not in (spec.step_shape, () if depth == 0 else spec.step_shape):
        raise InvalidInput(
            f"{field}: each step has shape {list(array.shape[1:])}; expected {_expected(spec)}", field=field
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput(f"{field}: a number is too large for {spec.dtype}", field=field)
    return array.reshape(len(array), *spec.step_shape)


def _check_widths(values: list[Any], spec: TensorSpec, shape: tuple[int, ...], field: str) -> None:
    """Refuse what is wider than the model's step before all of it is checked number by number."""
    for value in values if shape else ():
        if isinstance(value, list):
            if len(value) > shape[0]:
                raise InvalidInput(f"{field}: a step is too wide; expected {_expected(spec)}", field=field)
            _check_widths(value, spec, shape[1:], field)


def _cast(values: list[Any], dtype: str) -> np.ndarray:
    """As an array; what is too large for a float becomes infinite, without a warning: it is refused by name."""
    if not dtype.startswith("float"):
        return np.array(values, dtype)
    with np.errstate(over="ignore"):
        return np.array(values, dtype)


def _expected(spec: TensorSpec) -> str:
    what = "whole numbers" if spec.dtype.startswith("int") else "booleans" if spec.dtype == "bool" else "numbers"
    if spec.step_shape in ((), (1,)):
        return f"a list of {what}, one per step"
    return f"a list of steps, each {what} of shape {list(spec.step_shape)}"


@lru_cache(maxsize=256)
def _adapter(dtype: str, depth: int, symbols: int | None) -> TypeAdapter[Any]:
    """pydantic's check of a list of steps: strict, finite, token ids within the vocabulary."""
    leaf: Any = Annotated[float, Field(strict=True, allow_inf_nan=False)]
    if dtype.startswith("int"):
        low, high = (0, symbols) if symbols is not None else (np.iinfo(dtype).min, int(np.iinfo(dtype).max) + 1)
        leaf = Annotated[int, Field(strict=True, ge=low, lt=high)]
    elif dtype == "bool":
        leaf = Annotated[bool, Field(strict=True)]
    for _ in range(depth):
        leaf = Annotated[list[leaf], Field(strict=True, fail_fast=True)]
    return TypeAdapter(Annotated[list[leaf], Field(strict=True, fail_fast=True, min_length=1)])


@cache
def _index(vocabulary: tuple[str, ...]) -> dict[str, int]:
    return {symbol: i for i, symbol in enumerate(vocabulary)}
