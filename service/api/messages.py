"""The messages of a stream: chunks in and answers out, as JSON or in the binary layout that the README tells.

Binary numbers are little-endian. A request: flags (1: outputs of all steps), 0, top_k (0: unless told), steps, position
(-1: wherever the session stands); then each input in the signature's order, [steps, *step]. An answer: 0, flags (1: a
repeat's), symbols told per step, steps, position, expires_at; then each output, or logprobs and tokens of a language
model, of the last step or of all.
"""

import math
from struct import Struct

import numpy as np

from service.api.decoding import check_steps
from service.api.encoding import answer_bytes
from service.api.schemas import Steps, parse
from service.api.steps import advance_of, check_answer, view_of
from service.artifact import Signature, TensorSpec
from service.errors import InvalidInput
from service.sessions.requests import Advance, one_token
from service.state import Answer, Chunk
from service.views import View

REQUEST, ANSWER = Struct("<BBHIq"), Struct("<BBHIqd")
_POSITION, _ALIKE = Struct("<q"), 8  # where it stands in a request
ALL, REPLAYED = 1, 1  # flags
ANYWHERE = -1  # position


class Input:
    """One input of a model as raw bytes."""

    def __init__(self, spec: TensorSpec, symbols: int | None) -> None:
        self._name, self._shape, self._symbols = spec.name, spec.step_shape, symbols
        self._dtype = np.dtype(spec.dtype).newbyteorder("<")
        self._numbers = math.prod(spec.step_shape)
        self.step_bytes = self._numbers * self._dtype.itemsize

    def read(self, payload: bytes, at: int, steps: int) -> np.ndarray:
        """[steps, *step] from there on; InvalidInput for values that no JSON would be allowed to hold."""
        array = np.frombuffer(payload, self._dtype, steps * self._numbers, at)
        if self._symbols is not None:
            if not _within(array, self._symbols):
                raise InvalidInput(f"{self._name}: expected tokens from 0 to {self._symbols - 1}", field="inputs")
            return array
        if self._dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInput(f"{self._name}: expected finite numbers", field="inputs")
        if self._dtype.kind == "b" and not _within(array.view(np.uint8), 2):
            raise InvalidInput(f"{self._name}: expected bytes 0 and 1", field="inputs")
        return array.reshape(steps, *self._shape)


def _within(array: np.ndarray, limit: int) -> bool:
    return bool(array.min() >= 0 and array.max() < limit)


class Messages:
    """Reads the requests of one stream and writes its answers; ``keep``: see ``Advance``."""

    def __init__(self, signature: Signature, max_steps: int, keep: int) -> None:
        symbols = len(signature.vocabulary) if signature.vocabulary is not None else None
        self._symbols = signature.symbols
        self._inputs = [Input(spec, symbols if at == 0 else None) for at, spec in enumerate(signature.inputs)]
        self._step_bytes = sum(port.step_bytes for port in self._inputs)
        self._signature = signature
        self._max_steps = max_steps
        self._keep = keep
        self._like = b""  # how the last binary request began, up to its position: with this view, these steps ...
        self._view = View()
        self._steps = 0
        self._size = -1  # ... and so many bytes

    def from_text(self, payload: bytes) -> Advance:
        """A request from JSON: the body of ``POST .../steps``."""
        return advance_of(self._signature, parse(Steps, payload), self._max_steps, self._keep)

    def from_binary(self, payload: bytes) -> Advance:
        """A request from its binary layout."""
        if payload[:_ALIKE] != self._like or len(payload) != self._size:
            self._read_header(payload)
        (told,) = _POSITION.unpack_from(payload, _ALIKE)
        if told < ANYWHERE:
            raise InvalidInput("position: expected a number from 0 on, or -1", field="position")
        position = None if told == ANYWHERE else told
        if self._steps == 1 and self._symbols:
            token = int.from_bytes(payload[REQUEST.size :], "little", signed=True)
            if 0 <= token < self._symbols:
                return one_token(token, self._signature.inputs[0].dtype, self._view, position, self._keep)
        return Advance(self._chunk(payload), self._view, position, self._keep)

    def _read_header(self, payload: bytes) -> None:
        """What a client's requests mostly have in common, and is looked at once."""
        if len(payload) < REQUEST.size:
            raise InvalidInput(f"a binary message begins with a header of {REQUEST.size} bytes", field="header")
        flags, zero, top_k, steps, _ = REQUEST.unpack_from(payload)
        if flags & ~ALL or zero:
            raise InvalidInput("flags: expected 0 or 1, and a byte 0 behind it", field="flags")
        check_steps(steps, self._max_steps, "steps")
        if steps == 0 or len(payload) != REQUEST.size + steps * self._step_bytes:
            raise InvalidInput(
                f"inputs: expected {self._step_bytes} bytes for each of one step or more, got "
                f"{len(payload) - REQUEST.size} for {steps}",
                field="inputs",
            )
        view = view_of(self._signature, "all" if flags & ALL else "last", top_k or None)
        if view.every:
            check_answer(self._signature, view, steps)
        self._like, self._view, self._steps, self._size = payload[:_ALIKE], view, steps, len(payload)

    def _chunk(self, payload: bytes) -> Chunk:
        if len(self._inputs) == 1:  # by far the most models
            return (self._inputs[0].read(payload, REQUEST.size, self._steps),)
        steps, arrays, at = self._steps, list[np.ndarray](), REQUEST.size
        for port in self._inputs:
            arrays.append(port.read(payload, at, steps))
            at += steps * port.step_bytes
        return tuple(arrays)

    def to_text(self, answer: Answer, *, repeated: bool) -> bytes:
        """An answer as JSON: what ``POST .../steps`` answers; of a repeat, it says so."""
        body = answer_bytes(self._signature, answer)
        return body[:-1] + b',"replayed":true}' if repeated else body

    def to_binary(self, answer: Answer, *, repeated: bool) -> bytes:
        """An answer in its binary layout."""
        outputs, told = answer.outputs or {}, 0
        if self._signature.vocabulary is not None:
            tokens = outputs["tokens"]
            told = tokens.shape[-1]
            values = outputs["logprobs"].tobytes() + tokens.tobytes()
        else:
            values = b"".join([outputs[spec.name].tobytes() for spec in self._signature.outputs])
        flags = REPLAYED if repeated else 0
        return ANSWER.pack(0, flags, told, answer.steps, answer.start + answer.steps, answer.expires_at) + values
