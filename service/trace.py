"""What is kept of a session's last steps, so that what happened inside the model can be computed again.

Owns the bytes of a trace, and what is told of a layer's gates. A trace belongs to a session that asked for it when it
was created, and is committed with its record; it is b"" for every other session. Knows nothing of engines or stores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import Struct

from service.errors import UndecodableState

LOW, HIGH = 0.1, 0.9  # a gate is saturated beyond these (Karpathy, Johnson, Fei-Fei 2015)
SHORTEST_SEGMENT = 64  # steps that such a session may take at a time however few it keeps: shorter ones cost too much


class Span(Struct, frozen=True, array_like=True):
    """Steps in a row: the session's row before them, how many they are, and the bytes of each input of the model."""

    row: bytes
    steps: int
    inputs: tuple[bytes, ...]


class _Trace(Struct, frozen=True, array_like=True):
    """``gates``: of so many last steps the gates can be asked for. The last span is the latest."""

    gates: int
    spans: tuple[Span, ...] = ()


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_Trace)


def begun(gates: int) -> bytes:
    """The trace of a session that has consumed nothing; b"" where it keeps none (``gates`` 0)."""
    return _encode(_Trace(gates)) if gates else b""


def extended(trace: bytes, row: bytes, chunk: Sequence[np.ndarray]) -> bytes:
    """The trace after a chunk that was consumed from ``row``.

    Inputs are added to the latest span until it holds all the steps that can be asked for; then the one before it is
    given up, and the next chunk begins another. So there are at most two rows and about twice the steps, however long
    the session lives.

    Raises:
        UndecodableState: the bytes are no trace, or one of another number of inputs.
    """
    known = _decoded(trace)
    inputs = tuple(a.astype(a.dtype.newbyteorder("<"), copy=False).tobytes() for a in chunk)
    steps = len(chunk[0])
    earlier, latest = known.spans[:-1], known.spans[-1] if known.spans else None
    if latest is not None and len(latest.inputs) != len(inputs):
        raise UndecodableState("the stored trace does not fit the inputs of the session's model")
    if latest is None or latest.steps >= known.gates:
        earlier, latest = known.spans[-1:], Span(row, steps, inputs)
    else:
        joined = tuple(a + b for a, b in zip(latest.inputs, inputs, strict=True))
        latest = Span(latest.row, latest.steps + steps, joined)
    return _encode(_Trace(known.gates, (latest,) if latest.steps >= known.gates else (*earlier, latest)))


def latest_spans(trace: bytes, last: int) -> tuple[Span, ...]:
    """The spans that hold the ``last`` steps, or all there are; UndecodableState when the bytes are no trace."""
    spans = _decoded(trace).spans
    return spans[-1:] if spans and spans[-1].steps >= last else spans


def segment_steps(trace: bytes, steps: int) -> int:
    """How many of ``steps`` such a session may take at a time: the inputs of a whole segment are kept."""
    return min(steps, max(_decoded(trace).gates, SHORTEST_SEGMENT)) if trace else steps


def _decoded(trace: bytes) -> _Trace:
    try:
        return _decoder.decode(trace)
    except msgspec.MsgspecError as error:
        raise UndecodableState("the stored trace of the session cannot be decoded") from error


@dataclass(frozen=True, slots=True)
class Layer:
    """What happened in one recurrent operator: arrays [steps, hidden], each unit's value after each step.

    ``gates`` by their usual names, in the operator's order: i, f, g, o of an LSTM; r, z, n of a GRU; an RNN has none.
    ``states``: h, and c of an LSTM.
    """

    name: str
    operator: str
    hidden: int
    gates: Mapping[str, np.ndarray]
    states: Mapping[str, np.ndarray]

    @property
    def steps(self) -> int:
        """Of how many steps it tells."""
        return len(self.states["h"])

    @property
    def numbers(self) -> int:
        """How many values it tells."""
        return sum(values.size for values in (*self.gates.values(), *self.states.values()))

    def saturated(self) -> dict[str, dict[str, np.ndarray]]:
        """For each gate (of an RNN: h) the share of units, at each step, ``below`` 0.1 and ``above`` 0.9.

        A value between -1 and 1 (g, n, and the h of an RNN) is taken as (1 + x) / 2, so that one is below at -0.8 and
        above at 0.8.
        """
        shares = {}
        for name, values in (self.gates or self.states).items():
            units = values if name in ("i", "f", "o", "r", "z") else (1 + values) / 2
            shares[name] = {"below": (units < LOW).mean(axis=1), "above": (units > HIGH).mean(axis=1)}
        return shares
