"""From answers to JSON: numbers in their shortest exact form, tokens with their text, times in RFC 3339."""

import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from service.artifact import Signature
from service.state import Answer, Identity, Record, Tensors
from service.trace import Layer

if TYPE_CHECKING:
    from service.sessions.generation import Generated  # and with it the engine, which a front end has no need of

_LAST_S = 253_402_300_800.0  # the end of the year 9999
_PIECE = 16_384  # numbers that are written in less than a millisecond


def dumps(document: object) -> bytes:
    """JSON; arrays become lists, and a float32 the shortest decimal that reads back as the same float32."""
    return orjson.dumps(document, default=_single, option=orjson.OPT_SERIALIZE_NUMPY)


def _single(value: object) -> orjson.Fragment:
    """An array of no axes, which orjson does not take, written as within an array; anything else is a fault of ours."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return orjson.Fragment(dumps(value[None])[1:-1])
    raise TypeError(f"no JSON for {type(value).__name__}")


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC, to the millisecond; what no date can hold as the last one."""
    if not 0 <= seconds < _LAST_S:  # of a damaged session that is listed
        seconds = _LAST_S - 0.0005
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=64)
def _second(whole: int) -> str:
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}"


def outputs_of(signature: Signature, shown: Tensors) -> dict[str, Any]:
    """Outputs by name; with the text of the tokens for a language model."""
    if signature.vocabulary is None or "tokens" not in shown:
        return dict(shown)
    tokens = shown["tokens"].tolist()
    return {"tokens": tokens, "text": _text(tokens, signature.vocabulary), "logprobs": shown["logprobs"]}


def _text(tokens: list[Any], vocabulary: Sequence[str]) -> list[Any]:
    """Symbols in the same nesting as their tokens."""
    return [_text(t, vocabulary) if isinstance(t, list) else vocabulary[t] for t in tokens]


def answer_bytes(signature: Signature, answer: Answer) -> bytes:
    """The body of a steps answer: the same bytes each time for the same answer."""
    return dumps(
        {
            "position": answer.position,
            "steps": answer.steps,
            "outputs": outputs_of(signature, answer.outputs or {}),
            "expires_at": timestamp(answer.expires_at),
        }
    )


def session_document(identity: Identity, position: int, expires_at: float) -> dict[str, Any]:
    """A session as a listing shows it."""
    document: dict[str, Any] = {
        "id": identity.id,
        "model": identity.model,
        "version": identity.version,
        "fingerprint": identity.fingerprint,
        "position": position,
        "ttl": identity.ttl_s,
        "created_at": timestamp(identity.created_at),
        "expires_at": timestamp(expires_at),
    }
    return document | ({"gates": identity.gates} if identity.gates else {})


def gates_bytes(position: int, layers: Sequence[Layer]) -> bytes:
    """The body that tells what happened in each layer at a session's last steps."""
    told = [
        {
            "name": layer.name,
            "operator": layer.operator,
            "hidden": layer.hidden,
            "gates": {name: _piecewise(values) for name, values in layer.gates.items()},
            **{name: _piecewise(values) for name, values in layer.states.items()},
            "saturated": layer.saturated(),
        }
        for layer in layers
    ]
    return dumps({"position": position, "steps": layers[0].steps, "layers": told})


def _piecewise(values: np.ndarray) -> orjson.Fragment:
    """An array [steps, units], some steps at a time: orjson holds the interpreter's lock until it returns."""
    size = max(1, _PIECE // values.shape[1])
    pieces = [dumps(values[start : start + size])[1:-1] for start in range(0, len(values), size)]
    return orjson.Fragment(b"[" + b",".join(pieces) + b"]")


def record_document(record: Record, signature: Signature | None) -> dict[str, Any]:
    """A session with the steps of its last request; without the signature of its model, they stay numbers."""
    document = session_document(record.identity, record.position, record.expires_at)
    last = record.answers[-1] if record.answers else None
    if last is not None:
        shown: dict[str, Any] | None = None
        if last.outputs is not None:
            shown = outputs_of(signature, last.outputs) if signature is not None else dict(last.outputs)
        document["last"] = {"position": last.start, "steps": last.steps, "outputs": shown}
        if last.dropped:
            document["last"]["dropped"] = last.dropped
    return document


def generation_document(generated: "Generated") -> dict[str, Any]:
    """A whole generation."""
    document: dict[str, Any] = {
        "outputs": dict(generated.outputs or {}),
        "steps": generated.steps,
        "finish_reason": generated.finish,
    }
    if generated.text is not None:
        document = {"text": generated.text, **document, "seed": generated.seed}
    if generated.expires_at is not None:
        document |= {"position": generated.position, "expires_at": timestamp(generated.expires_at)}
    return document


class EventWriter:
    """Writes what is told of one stream as server-sent events that OpenAI-compatible clients read.

    A language model's event is put together around its few changing values: it is written for every token of every
    stream, and comes to the same bytes as its document would.
    """

    def __init__(self, model: str, signature: Signature) -> None:
        self._signature = signature
        begin = {"id": f"gen-{secrets.token_hex(8)}", "created": int(time.time()), "model": model}
        self._begin = b"data: " + dumps(begin)[:-1]
        self._symbols = _symbols(signature.vocabulary) if signature.vocabulary is not None else ()

    def event(self, generated: "Generated") -> bytes:
        """One event."""
        end = b"" if generated.expires_at is None else _expiry(generated.expires_at)
        finish, outputs = _FINISHES[generated.finish], generated.outputs or {}
        if generated.text is None:
            told = dumps(outputs_of(self._signature, outputs))
            middle = b'"object":"forecast","outputs":%b,"finish_reason":%b' % (told, finish)
        else:
            tokens: list[int] = outputs["tokens"].tolist()
            middle = _COMPLETION % (
                dumps(generated.text),
                b",".join([self._symbols[token] for token in tokens]),
                dumps(outputs["logprobs"]),
                finish,
                dumps(tokens),
                dumps(generated.seed),
            )
        return b'%b,%b,"position":%d%b}\n\n' % (self._begin, middle, generated.position, end)


_FINISHES = {finish: dumps(finish) for finish in (None, "length", "stop", "interrupted")}
_COMPLETION = (
    b'"object":"text_completion","choices":[{"index":0,"text":%b,"logprobs":{"tokens":[%b],"token_logprobs":%b},'
    b'"finish_reason":%b}],"tokens":%b,"seed":%b'
)


@lru_cache(maxsize=64)
def _expiry(expires_at: float) -> bytes:
    """The end of an event: the sessions of one tick mostly share it."""
    return b',"expires_at":"%b"' % timestamp(expires_at).encode()


@lru_cache(maxsize=8)
def _symbols(vocabulary: tuple[str, ...]) -> tuple[bytes, ...]:
    """Each symbol as JSON: the streams of one model share it."""
    return tuple(dumps(symbol) for symbol in vocabulary)
