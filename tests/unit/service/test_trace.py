"""What is kept of the last steps: enough, in order, and never much more than was asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import UndecodableState
from service.trace import SHORTEST_SEGMENT, begun, extended, latest_spans, segment_steps


def kept(trace: bytes, last: int) -> tuple[int, list[float]]:
    """The row that the steps begin at, and the inputs from there on."""
    spans = latest_spans(trace, last)
    return int(spans[0].row), [float(n) for span in spans for n in np.frombuffer(span.inputs[0], np.float32)]


@given(st.integers(1, 12), st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 12))
def test_the_last_steps_are_there_however_they_came(gates: int, chunks: list[int], last: int) -> None:
    """From the row before them on, with at most about twice the steps, and few more than are asked for."""
    trace, position = begun(gates), 0
    for steps in chunks:
        inputs = np.arange(position, position + steps, dtype=np.float32)
        trace = extended(trace, str(position).encode(), (inputs, inputs.astype(np.int64)))
        position += steps
    last = min(last, gates)
    start, told = kept(trace, last)
    assert told == [float(n) for n in range(start, position)]
    assert len(told) >= min(last, position)
    spans = latest_spans(trace, 10**9)
    assert len(spans) <= 2
    assert sum(span.steps for span in spans) <= 2 * (gates - 1) + max(chunks)
    for span in spans:
        assert [len(part) for part in span.inputs] == [4 * span.steps, 8 * span.steps]


def test_inputs_of_another_number_are_refused() -> None:
    """Such a trace is another model's."""
    trace = extended(begun(3), b"row", (np.zeros(1), np.zeros(1)))
    with pytest.raises(UndecodableState):
        extended(trace, b"row", (np.zeros(1),))


def test_who_did_not_ask_keeps_nothing() -> None:
    """And their chunks are cut as ever."""
    assert begun(0) == b""
    assert segment_steps(b"", 16_384) == 16_384


def test_long_chunks_are_cut_for_those_who_asked() -> None:
    """The inputs of one segment are kept whole, so it is no longer than what is kept anyway, or than a usual one."""
    assert segment_steps(begun(10), 16_384) == SHORTEST_SEGMENT
    assert segment_steps(begun(200), 16_384) == 200
    assert segment_steps(begun(200), 32) == 32


def test_inputs_mean_the_same_everywhere() -> None:
    """They are kept little-endian, whatever the machine has."""
    (span,) = latest_spans(extended(begun(1), b"", (np.array([1], ">i4"),)), 1)
    assert span.inputs == (b"\1\0\0\0",)


@pytest.mark.parametrize("trace", [b"", b"\xc1", b"\x93\1\2\3", b"trace"])
def test_bytes_that_are_no_trace_are_refused(trace: bytes) -> None:
    """What was not written by the service is named, not guessed at."""
    with pytest.raises(UndecodableState):
        latest_spans(trace, 1)
