"""From answers to JSON."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api import encoding
from service.api.encoding import (
    EventWriter,
    answer_bytes,
    dumps,
    gates_bytes,
    generation_document,
    outputs_of,
    record_document,
    timestamp,
)
from service.artifact import Signature
from service.sessions.generation import Finish, Generated
from service.state import Answer, Record, decode_answers, encode_answers
from service.trace import Layer
from tests.support.records import record
from tests.support.signatures import document, parse

NUMBERS, TEXT = parse(document()), parse(document("language"))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float32_is_written_short_and_read_back_exactly(value: float) -> None:
    """The shortest decimal that is the same float32 again."""
    written = dumps({"y": np.array([value], np.float32)})
    assert np.array(json.loads(written)["y"], np.float32).tobytes() == np.float32(value).tobytes()
    assert dumps(np.array([0.1], np.float32)) == b"[0.1]"


@pytest.mark.parametrize(
    ("array", "written"),
    [
        (np.array([0.5, 65504, 2**-24], np.float16), [0.5, 65504, 2**-24]),
        (np.array([[0.1, 1e300]], np.float64), [[0.1, 1e300]]),
        (np.array([-(2**63), 2**63 - 1], np.int64), [-(2**63), 2**63 - 1]),
        (np.array([-(2**63), 7], np.longlong), [-(2**63), 7]),  # what ONNX Runtime calls int64
        (np.array([-(2**31), 7], np.int32), [-(2**31), 7]),
        (np.array([[True], [False]]), [[True], [False]]),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_every_type_is_told_and_kept_exactly(array: np.ndarray, written: list[Any]) -> None:
    """In JSON and for repeats, also of a step that is one number without an axis."""
    told = np.array(json.loads(dumps({"y": array}))["y"])
    np.testing.assert_array_equal(told.astype(array.dtype), np.array(written, array.dtype), strict=True)
    single = array.ravel()[0, ...]
    assert dumps({"y": single}) == dumps({"y": single[None]}).replace(b"[", b"").replace(b"]", b"")
    answer = Answer(0, 1, b"", 0.0, {"y": array, "one": single})
    (kept,) = decode_answers(encode_answers([answer]))
    assert answer_bytes(NUMBERS, kept) == answer_bytes(NUMBERS, answer)


def test_a_float32_alone_is_written_short_too() -> None:
    """As it is within an array; what JSON does not know is a fault."""
    assert dumps(np.array(0.1, np.float32)) == b"0.1"
    with pytest.raises(TypeError):
        dumps(object())


def test_times_are_rfc_3339_in_utc() -> None:
    """To the millisecond, with a Z."""
    assert timestamp(0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1_700_000_000.12345) == "2023-11-14T22:13:20.123Z"


@pytest.mark.parametrize("seconds", [1e300, math.nan, math.inf, -math.inf, -1.0, 253_402_300_800.0])
def test_what_is_no_date_is_told_as_the_last_one(seconds: float) -> None:
    """A damaged session must not take the list that it stands in with it."""
    assert timestamp(seconds) == "9999-12-31T23:59:59.999Z"


def test_tokens_come_with_their_text() -> None:
    """In the same nesting: the most likely symbols of one step, or of each."""
    one = {"tokens": np.array([1, 0]), "logprobs": np.array([-0.5, -1.0])}
    every = {"tokens": np.array([[1, 0], [0, 1]]), "logprobs": np.zeros((2, 2))}
    assert outputs_of(TEXT, one)["text"] == ["b", "a"]
    assert outputs_of(TEXT, every)["text"] == [["b", "a"], ["a", "b"]]
    assert outputs_of(NUMBERS, {"y": np.zeros(2)}).keys() == {"y"}


def test_the_same_answer_has_the_same_bytes() -> None:
    """A repeat is told byte for byte what the first was told, through the store, too."""
    answer = Answer(3, 2, b"", 1_700_000_000.0, {"y": np.array([[1, 2], [3, 4.5]], np.float32)})
    assert json.loads(answer_bytes(NUMBERS, answer)) == {
        "position": 5,
        "steps": 2,
        "outputs": {"y": [[1, 2], [3, 4.5]]},
        "expires_at": "2023-11-14T22:13:20.000Z",
    }
    assert answer_bytes(NUMBERS, answer) == answer_bytes(NUMBERS, answer)


def test_a_session_shows_its_last_request() -> None:
    """With its outputs; null where they were too large to keep; without a signature as numbers; at first not at all."""
    kept = record("a")
    shown = record_document(kept, None)
    assert (shown["id"], shown["position"], shown["ttl"]) == ("a", 0, 60.0)
    assert shown["last"] == {"position": 3, "steps": 9, "outputs": None}
    tokens = {"tokens": np.array([1]), "logprobs": np.array([-0.5])}
    one = with_answers(kept, Answer(0, 1, b"", 0.0, tokens))
    assert record_document(one, TEXT)["last"]["outputs"]["text"] == ["b"]
    assert "text" not in record_document(one, None)["last"]["outputs"]
    assert "last" not in record_document(with_answers(kept), TEXT)


def with_answers(of: Record, *answers: Answer) -> Record:
    """A record with other answers."""
    return Record(of.identity, of.position, of.revision, of.row, of.output, answers, of.expires_at)


def test_a_generation_tells_what_it_has() -> None:
    """Text and seed for a language model, position and expiry for a session."""
    tokens = {"tokens": np.array([1]), "logprobs": np.array([-0.5])}
    text = generation_document(Generated(tokens, "b", 7, 1, 9, "stop", 0.0))
    assert {"text": "b", "steps": 1, "finish_reason": "stop", "seed": 9, "position": 7}.items() <= text.items()
    forecast = generation_document(Generated({"y": np.zeros((1, 2))}, None, 7, 1, None, "length"))
    assert forecast.keys() == {"outputs", "steps", "finish_reason"}


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
@pytest.mark.parametrize("piece", [1, 9, 10**6])
def test_gates_are_written_piece_by_piece(monkeypatch: pytest.MonkeyPatch, steps: int, piece: int) -> None:
    """The same document, whatever the size of the pieces."""
    monkeypatch.setattr(encoding, "_PIECE", piece)
    random = np.random.default_rng(0)
    h, n = (random.normal(size=(steps, 4)).astype(np.float32) for _ in range(2))
    (layer,) = (told := json.loads(gates_bytes(12, [Layer("a", "GRU", 4, {"n": n}, {"h": h})])))["layers"]
    assert (told["position"], told["steps"], layer["name"], layer["operator"], layer["hidden"]) == (
        12,
        steps,
        "a",
        "GRU",
        4,
    )
    for written, values in ((layer["h"], h), (layer["gates"]["n"], n)):
        assert np.array(written, np.float32).reshape(steps, 4).tobytes() == values.tobytes()
    assert len(layer["saturated"]["n"]["below"]) == steps


def event_of(model: str, signature: Signature, generated: Generated) -> dict[str, Any]:
    """An event of a stream as a document, held against the way it is written: exactly as the document would be."""
    event = EventWriter(model, signature).event(generated)
    assert event.startswith(b"data: ")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    document: dict[str, Any] = json.loads(event[6:])
    assert dumps(document) == event[6:-2]
    assert document.pop("id").startswith("gen-")
    assert document.pop("created") > 1_700_000_000
    assert document.pop("model") == model
    return document


@pytest.mark.parametrize("text", ["a", "", '"\n', "\u00e9\u2028"])
@pytest.mark.parametrize("finish", [None, "length", "stop"])
def test_an_event_is_what_openai_compatible_clients_read(text: str, finish: Finish | None) -> None:
    """The fields, in this order, whatever the text; numbers are the shortest that read back as the same float32."""
    outputs = {"tokens": np.array([1], np.uint8), "logprobs": np.array([-0.1], np.float32)}
    told = event_of('my "model"', TEXT, Generated(outputs, text, 7, 1, 3, finish, 12.5))
    assert TEXT.vocabulary is not None
    assert json.dumps(told) == json.dumps(
        {
            "object": "text_completion",
            "choices": [
                {
                    "index": 0,
                    "text": text,
                    "logprobs": {"tokens": [TEXT.vocabulary[1]], "token_logprobs": [-0.1]},
                    "finish_reason": finish,
                }
            ],
            "tokens": [1],
            "seed": 3,
            "position": 7,
            "expires_at": "1970-01-01T00:00:12.500Z",
        }
    )


def test_the_event_of_a_repeat_tells_all_its_steps() -> None:
    """What was kept of a stream comes as one event; without a session it does not expire."""
    outputs = {"tokens": np.array([1, 0, 1], np.uint8), "logprobs": np.array([-1, -2, -3], np.float32)}
    told = event_of("m", TEXT, Generated(outputs, "bab", 9, 3, None, "interrupted", None, repeated=True))
    assert told["tokens"] == [1, 0, 1]
    assert told["choices"][0]["logprobs"]["token_logprobs"] == [-1, -2, -3]
    assert len(told["choices"][0]["logprobs"]["tokens"]) == 3
    assert (told["seed"], told["choices"][0]["finish_reason"]) == (None, "interrupted")
    assert "expires_at" not in told


def test_the_event_of_a_forecast_tells_its_values() -> None:
    """A forecast has outputs by name instead of text."""
    outputs = {"y": np.array([[0.5, 2]], np.float32)}
    assert event_of("m", NUMBERS, Generated(outputs, None, 4, 1, None, "length", 0.0)) == {
        "object": "forecast",
        "outputs": {"y": [[0.5, 2]]},
        "finish_reason": "length",
        "position": 4,
        "expires_at": "1970-01-01T00:00:00.000Z",
    }
