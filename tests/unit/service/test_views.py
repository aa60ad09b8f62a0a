"""What is shown of a chunk's outputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.views import View, show_last, top

OUTPUTS = {"y": np.arange(12.0).reshape(4, 3), "z": np.arange(4)}
LOGPROBS = np.array([[-3.0, -1.0, -2.0, -1.0], [-0.5, -4.0, -0.1, -9.0]], np.float32)


def test_the_last_step_or_all_of_them() -> None:
    """Of each output the last step without, or every step with, its axis of steps."""
    last, every = View().show(OUTPUTS), View(every=True).show(OUTPUTS)
    assert (last["y"].tolist(), last["z"].tolist()) == ([9, 10, 11], 3)
    assert (every["y"].shape, every["z"].tolist()) == ((4, 3), [0, 1, 2, 3])


def test_what_is_shown_owns_its_bytes() -> None:
    """A view of a tick's output would keep the outputs of the whole tick in memory for one answer."""
    tick = np.zeros((100, 8, 3))
    for view in (View(), View(every=True), View(top_k=2), View(every=True, top_k=2)):
        for array in view.show({"y": tick[5, :6]}).values():
            assert array.base is None or array.base.size == array.size
            assert array.flags.c_contiguous


def test_the_most_likely_symbols_come_first() -> None:
    """Top-k falls, and of equal symbols the smaller index comes first."""
    shown = View(every=True, top_k=3).show({"logprobs": LOGPROBS})
    assert shown["tokens"].tolist() == [[1, 3, 2], [2, 0, 1]]
    assert shown["logprobs"].tolist() == [[-1, -1, -2], LOGPROBS[1, [2, 0, 1]].tolist()]
    assert View(top_k=2).show({"logprobs": LOGPROBS})["tokens"].tolist() == [2, 0]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=9))
def test_the_most_likely_one_is_the_first_of_several(values: list[int]) -> None:
    """The shortcut for one symbol gives what sorting gives, with equal values, too."""
    row = np.array(values, np.float32)
    one, several = top(row, 1), top(row, len(values))
    assert one["tokens"].tolist() == several["tokens"].tolist()[:1]
    assert one["logprobs"].tolist() == several["logprobs"].tolist()[:1]


@pytest.mark.parametrize("ks", [[2, 2, 2], [1, 3, 2], [4, 4, 1]])
def test_tops_of_many_rows_at_once_are_those_of_each(ks: list[int]) -> None:
    """Whatever each client asked for, it is shown what ``show`` would show it."""
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    views = [View(top_k=k) for k in ks]
    for view, row, shown in zip(views, rows, show_last(views, rows), strict=True):
        alone = view.show({"logprobs": row[None]})
        assert {name: a.tolist() for name, a in shown.items()} == {name: a.tolist() for name, a in alone.items()}


@pytest.mark.parametrize("view", [View(), View(every=True), View(top_k=2), View(every=True, top_k=2)])
def test_segments_join_to_what_the_whole_would_show(view: View) -> None:
    """Nothing of a view shows that a chunk was cut."""
    whole = {"logprobs": np.random.default_rng(0).normal(size=(7, 4))}
    segments = [view.show({"logprobs": whole["logprobs"][a:b]}) for a, b in ((0, 3), (3, 6), (6, 7))]
    joined, expected = view.join(segments), view.show(whole)
    assert {name: a.tolist() for name, a in joined.items()} == {name: a.tolist() for name, a in expected.items()}
