"""The messages of a stream: a request is the same in either format, and so is its answer."""

import json
import struct

import numpy as np
import pytest

from service.api.messages import Messages
from service.errors import InvalidInput, ServiceError, TooLarge
from service.sessions.requests import Advance
from service.state import Answer
from tests.support.signatures import document, parse
from tests.support.websocket import ANSWER, REQUEST, request

MAX_STEPS, KEEP = 50, 16
AT_0 = {"position": 0}
LANGUAGE = Messages(parse(document("language")), MAX_STEPS, KEEP)
PAIRS = Messages(parse(document()), MAX_STEPS, KEEP)  # one input of two numbers per step
MIXED = Messages(
    parse(
        document(
            inputs=[
                {"name": "x", "dtype": "float32", "shape": [None, None, 2]},
                {"name": "on", "dtype": "bool", "shape": [None, None, 1]},
                {"name": "row", "dtype": "int32", "shape": [None, None]},
            ]
        )
    ),
    MAX_STEPS,
    KEEP,
)


def same(one: Advance, other: Advance) -> bool:
    """Whether either is a repeat of the other, at the same position."""
    return (one.digest, one.position, one.view, one.keep) == (other.digest, other.position, other.view, other.keep)


@pytest.mark.parametrize(
    ("messages", "binary", "text"),
    [
        (LANGUAGE, request(0, 1, 1, code="q"), {"inputs": [0, 1, 1]}),
        (LANGUAGE, request(1, position=7, top_k=2, code="q"), {"text": "b", "position": 7, "top_k": 2}),
        (LANGUAGE, request(1, 0, flags=1, code="q"), {"inputs": [1, 0], "return": "all"}),
        (PAIRS, REQUEST.pack(0, 0, 0, 2, 0) + struct.pack("<4f", 1, 2, 3, 4), {"inputs": [[1, 2], [3, 4]], **AT_0}),
        (
            MIXED,
            REQUEST.pack(0, 0, 0, 2, -1) + struct.pack("<4f2?2i", 1, 2, 3, 4, True, False, -5, 6),
            {"inputs": {"x": [[1, 2], [3, 4]], "on": [True, False], "row": [-5, 6]}},
        ),
    ],
)  # fmt: skip
def test_a_request_is_the_same_in_either_format(messages: Messages, binary: bytes, text: dict[str, object]) -> None:
    """So a repeat may come in the other one; and once more, as the header is then known."""
    for _ in range(2):
        assert same(messages.from_binary(binary), messages.from_text(json.dumps(text).encode()))
    assert messages.from_binary(binary).keep == KEEP


@pytest.mark.parametrize(
    ("messages", "binary", "error", "field"),
    [
        (LANGUAGE, b"", InvalidInput, "header"),
        (LANGUAGE, request(1, code="q")[:15], InvalidInput, "header"),
        (LANGUAGE, request(1, flags=2, code="q"), InvalidInput, "flags"),
        (LANGUAGE, b"\0\1" + request(1, code="q")[2:], InvalidInput, "flags"),
        (LANGUAGE, request(1, position=-2, code="q"), InvalidInput, "position"),
        (LANGUAGE, request(code="q"), InvalidInput, "inputs"),
        (LANGUAGE, request(1, code="q") + b"\0", InvalidInput, "inputs"),
        (LANGUAGE, request(1, code="i"), InvalidInput, "inputs"),
        (LANGUAGE, request(2, code="q"), InvalidInput, "inputs"),
        (LANGUAGE, request(-1, code="q"), InvalidInput, "inputs"),
        (LANGUAGE, request(0, 2, code="q"), InvalidInput, "inputs"),
        (LANGUAGE, request(0, -1, code="q"), InvalidInput, "inputs"),
        (LANGUAGE, request(*[0] * 51, code="q"), TooLarge, "steps"),
        (LANGUAGE, REQUEST.pack(0, 0, 0, 2**32 - 1, 0), TooLarge, "steps"),
        (PAIRS, request(1, 2, top_k=1)[:4] + request(1, 2)[4:], InvalidInput, "inputs"),
        (PAIRS, REQUEST.pack(0, 0, 1, 1, 0) + struct.pack("<2f", 1, 2), InvalidInput, "top_k"),
        (PAIRS, REQUEST.pack(0, 0, 0, 1, 0) + struct.pack("<2f", 1, np.nan), InvalidInput, "inputs"),
        (PAIRS, REQUEST.pack(0, 0, 0, 1, 0) + struct.pack("<2f", -np.inf, 0), InvalidInput, "inputs"),
        (MIXED, REQUEST.pack(0, 0, 0, 1, 0) + struct.pack("<2fBi", 1, 2, 2, 0), InvalidInput, "inputs"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_by_field(
    messages: Messages, binary: bytes, error: type[ServiceError], field: str
) -> None:
    """And the next request is read as if nothing had been."""
    with pytest.raises(error) as found:
        messages.from_binary(binary)
    assert found.value.field == field
    assert LANGUAGE.from_binary(request(1, code="q")).steps == 1


def test_an_answer_of_a_language_model() -> None:
    """Log-probabilities, then tokens in the smallest type that holds the vocabulary."""
    outputs = {"tokens": np.array([[1, 0], [0, 1]], np.uint8), "logprobs": np.array([[-1, -2], [-3, -4]], np.float32)}
    answer = Answer(5, 2, b"", 1e9 + 0.5, outputs)
    told = LANGUAGE.to_binary(answer, repeated=True)
    assert ANSWER.unpack_from(told) == (0, 1, 2, 2, 7, 1e9 + 0.5)
    assert told[ANSWER.size :] == struct.pack("<4f4B", -1, -2, -3, -4, 1, 0, 0, 1)
    assert json.loads(LANGUAGE.to_text(answer, repeated=True))["replayed"] is True


def test_an_answer_of_numbers() -> None:
    """Each output in the signature's order, however they are kept; JSON says nothing of what is no repeat."""
    named = [{"name": name, "dtype": "float32", "shape": [None, None, 1]} for name in ("y", "z")]
    messages = Messages(parse(document(outputs=named)), MAX_STEPS, KEEP)
    answer = Answer(0, 3, b"", 0.0, {"z": np.array([2], np.float32), "y": np.array([1], np.float32)})
    assert messages.to_binary(answer, repeated=False) == ANSWER.pack(0, 0, 0, 3, 3, 0.0) + struct.pack("<2f", 1, 2)
    assert "replayed" not in json.loads(messages.to_text(answer, repeated=False))


def test_nothing_is_no_message() -> None:
    """Neither as the first message."""
    with pytest.raises(InvalidInput):
        Messages(parse(document("language")), MAX_STEPS, KEEP).from_binary(b"")
