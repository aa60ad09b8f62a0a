"""From JSON to chunks: what fits comes through exactly, what does not is named by its field."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.decoding import decode_chunk
from service.artifact import Signature
from service.errors import InvalidInput, TooLarge
from tests.support.signatures import document, parse

STEPS = 1000  # the limit
SUMS = parse(document(inputs=[{"name": "x", "dtype": "float32", "shape": [None, None, 1]}]))
PAIRS = parse(document())
MATRIX = parse(document(inputs=[{"name": "x", "dtype": "float64", "shape": [None, None, 2, 2]}]))
FLAGS = parse(document(inputs=[{"name": "x", "dtype": "bool", "shape": [None, None]}]))
WHOLE = parse(document(inputs=[{"name": "x", "dtype": "int32", "shape": [None, None, 1]}]))
HALF = parse(document(inputs=[{"name": "x", "dtype": "float16", "shape": [None, None]}]))
LONG = parse(document(inputs=[{"name": "x", "dtype": "int64", "shape": [None, None]}]))
CHUNK = parse(document(inputs=[{"name": "x", "dtype": "float32", "shape": [None, 512], "time_axis": None}]))
_ALONE = {"name": "x", "dtype": "float64", "shape": [1, 2], "batch_axis": None, "time_axis": None}
ALONE = parse(document(batched=False, inputs=[_ALONE]))
TEXT = parse(document("language"))
BOTH = parse(
    document(
        inputs=[
            {"name": "audio", "dtype": "float32", "shape": [None, None, 2]},
            {"name": "rate", "dtype": "int64", "shape": [None, None]},
        ]
    )
)


FITTING: list[tuple[Signature, dict[str, Any], list[Any]]] = [
    (SUMS, {"inputs": [1, 2.5]}, [[[1], [2.5]]]),
    (SUMS, {"inputs": [[1], [2.5]]}, [[[1], [2.5]]]),
    (SUMS, {"inputs": {"x": [3]}}, [[[3]]]),
    (PAIRS, {"inputs": [[1, 2], [3, 4]]}, [[[1, 2], [3, 4]]]),
    (MATRIX, {"inputs": [[[1, 2], [3, 4]]]}, [[[[1, 2], [3, 4]]]]),
    (FLAGS, {"inputs": [True, False]}, [[True, False]]),
    (WHOLE, {"inputs": [-(2**31), 2**31 - 1]}, [[[-(2**31)], [2**31 - 1]]]),
    (LONG, {"inputs": [-(2**63), 2**63 - 1]}, [[-(2**63), 2**63 - 1]]),
    (HALF, {"inputs": [0.5, 65519]}, [[0.5, 65504]]),
    (CHUNK, {"inputs": [[0.5] * 512]}, [[[0.5] * 512]]),
    (ALONE, {"inputs": [[[1, 2]], [[3, 4]]]}, [[[[1, 2]], [[3, 4]]]]),
    (TEXT, {"inputs": [0, 1, 1]}, [[0, 1, 1]]),
    (TEXT, {"text": "abb"}, [[0, 1, 1]]),
    (BOTH, {"inputs": {"rate": [7], "audio": [[1, 2]]}}, [[[1, 2]], [7]]),
]


@pytest.mark.parametrize(("signature", "body", "expected"), FITTING, ids=str)
def test_what_fits_comes_through(signature: Signature, body: dict[str, Any], expected: list[Any]) -> None:
    """Each way of writing a chunk gives [steps, *step shape] of the input's type."""
    chunk = decode_chunk(signature, body.get("inputs"), body.get("text"), max_steps=STEPS)
    assert [array.tolist() for array in chunk] == expected
    assert [str(array.dtype) for array in chunk] == [spec.dtype for spec in signature.inputs]


WRONG: list[tuple[Signature, dict[str, Any], str, str]] = [
    (SUMS, {}, "inputs", "inputs missing"),
    (TEXT, {}, "inputs", "text or inputs missing"),
    (TEXT, {"text": "a", "inputs": [1]}, "text", "not both"),
    (TEXT, {"text": ""}, "text", "empty"),
    (TEXT, {"text": "abc"}, "text", "symbol 'c' (character 2)"),
    (TEXT, {"inputs": [0, 2]}, "inputs[1]", "less than 2"),
    (TEXT, {"inputs": [-1]}, "inputs[0]", "greater than or equal to 0"),
    (TEXT, {"inputs": [0.5]}, "inputs[0]", "valid integer"),
    (TEXT, {"inputs": [1.0]}, "inputs[0]", "valid integer"),
    (TEXT, {"inputs": [True]}, "inputs[0]", "valid integer"),
    (TEXT, {"inputs": ["a"]}, "inputs[0]", "valid integer"),
    (SUMS, {"text": "a"}, "text", "no language model"),
    (SUMS, {"inputs": []}, "inputs", "at least 1 item"),
    (SUMS, {"inputs": 5}, "inputs", "valid list"),
    (SUMS, {"inputs": "12"}, "inputs", "valid list"),
    (SUMS, {"inputs": [1, "2"]}, "inputs[1]", "valid number"),
    (SUMS, {"inputs": [1, None]}, "inputs[1]", "valid number"),
    (SUMS, {"inputs": [True]}, "inputs[0]", "valid number"),
    (SUMS, {"inputs": [1, [2]]}, "inputs[1]", "valid number"),
    (SUMS, {"inputs": [[1], 2]}, "inputs[1]", "valid list"),
    (SUMS, {"inputs": [[1], [2, 3]]}, "inputs", "too wide"),
    (SUMS, {"inputs": [[1, 2]]}, "inputs", "too wide"),
    (SUMS, {"inputs": [[]]}, "inputs", "shape [0]"),
    (SUMS, {"inputs": [1e39]}, "inputs", "too large for float32"),
    (SUMS, {"inputs": [10**30, -(10**60)]}, "inputs", "too large for float32"),
    (HALF, {"inputs": [65520]}, "inputs", "too large for float16"),
    (LONG, {"inputs": [2**63]}, "inputs[0]", "less than"),
    (LONG, {"inputs": [-(2**63) - 1]}, "inputs[0]", "greater than or equal"),
    (WHOLE, {"inputs": [-(2**31) - 1]}, "inputs[0]", "greater than or equal"),
    (WHOLE, {"inputs": [1.5]}, "inputs[0]", "valid integer"),
    (WHOLE, {"inputs": [True]}, "inputs[0]", "valid integer"),
    (CHUNK, {"inputs": [0.5] * 512}, "inputs[0]", "valid list"),
    (CHUNK, {"inputs": [[0.5] * 511]}, "inputs", "shape [511]"),
    (CHUNK, {"inputs": [[0.5] * 513]}, "inputs", "too wide"),
    (ALONE, {"inputs": [[1, 2]]}, "inputs", "too wide"),
    (ALONE, {"inputs": [[1]]}, "inputs[0][0]", "valid list"),
    (WHOLE, {"inputs": [2**31]}, "inputs[0]", "less than"),
    (FLAGS, {"inputs": [1]}, "inputs[0]", "valid boolean"),
    (PAIRS, {"inputs": [1, 2]}, "inputs[0]", "valid list"),
    (PAIRS, {"inputs": [[1, 2], [3]]}, "inputs", "different shapes"),
    (PAIRS, {"inputs": [[1, 2], [3, "4"]]}, "inputs[1][1]", "valid number"),
    (PAIRS, {"inputs": [[[1, 2]]]}, "inputs[0][0]", "valid number"),
    (MATRIX, {"inputs": [[[1, 2], [3]]]}, "inputs", "different shapes"),
    (MATRIX, {"inputs": [[[1, 2], ["x"] * 3]]}, "inputs", "too wide"),
    (SUMS, {"inputs": {"z": [1]}}, "inputs.z", "no input 'z' (it has x)"),
    (SUMS, {"inputs": {}}, "inputs.x", "missing"),
    (BOTH, {"inputs": [1]}, "inputs", "audio, rate"),
    (BOTH, {"inputs": {"audio": [[1, 2]]}}, "inputs.rate", "missing"),
    (BOTH, {"inputs": {"audio": [[1, 2]], "rate": [1, 2]}}, "inputs", "number of steps"),
    (BOTH, {"inputs": {"audio": [[1, 2]], "rate": ["x"]}}, "inputs.rate[0]", "valid integer"),
]


@pytest.mark.parametrize(("signature", "body", "field", "sentence"), WRONG, ids=str)
def test_what_does_not_fit_is_named(signature: Signature, body: dict[str, Any], field: str, sentence: str) -> None:
    """Each fault says where it is and what was expected."""
    with pytest.raises(InvalidInput) as refused:
        decode_chunk(signature, body.get("inputs"), body.get("text"), max_steps=STEPS)
    assert refused.value.field == field
    assert sentence in refused.value.detail


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_named(value: float) -> None:
    """NaN and infinity are refused before they reach a model."""
    for signature, inputs, field in ((SUMS, [1, value], "inputs[1]"), (PAIRS, [[1, value]], "inputs[0][1]")):
        with pytest.raises(InvalidInput, match="finite") as refused:
            decode_chunk(signature, inputs, None, max_steps=STEPS)
        assert refused.value.field == field


def test_a_field_elsewhere_in_a_body_is_named_in_full() -> None:
    """In a prediction of several sequences the fault names the sequence."""
    with pytest.raises(InvalidInput) as refused:
        decode_chunk(SUMS, [1, "x"], None, "inputs[3]", max_steps=STEPS)
    assert refused.value.field == "inputs[3][1]"
    with pytest.raises(InvalidInput) as refused:
        decode_chunk(TEXT, None, "xyz", "inputs[3]", max_steps=STEPS)
    assert refused.value.field == "text[3]"


@pytest.mark.parametrize(
    ("signature", "body", "field"),
    [
        (SUMS, {"inputs": ["x"] * (STEPS + 1)}, "inputs"),
        (PAIRS, {"inputs": [["x"]] * (STEPS + 1)}, "inputs"),
        (TEXT, {"inputs": ["x"] * (STEPS + 1)}, "inputs"),
        (TEXT, {"text": "?" * (STEPS + 1)}, "text"),
        (SUMS, {"inputs": {"x": ["x"] * (STEPS + 1)}}, "inputs"),
    ],
)
def test_a_chunk_beyond_the_limit_is_refused_unseen(signature: Signature, body: dict[str, Any], field: str) -> None:
    """Its length is enough to refuse it: none of its values is looked at."""
    with pytest.raises(TooLarge) as refused:
        decode_chunk(signature, body.get("inputs"), body.get("text"), max_steps=STEPS)
    assert refused.value.field == field


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_survive_the_way_through_json(values: list[float]) -> None:
    """A float32 written as JSON and read again has the same bits."""
    (array,) = decode_chunk(SUMS, orjson.loads(orjson.dumps(values)), None, max_steps=STEPS)
    assert array.tobytes() == np.array(values, np.float32).tobytes()
