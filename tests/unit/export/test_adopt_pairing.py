"""How adoption tells which input comes back as which output."""

import itertools

import pytest

from export.adoption.pairing import Pair, find_pairs, score
from export.adoption.ports import Dim, Port, Ports
from export.errors import ExportError

STATE: tuple[Dim, ...] = (1, "batch", 16)


def ports(inputs: str, outputs: str, shape: tuple[Dim, ...] | None = STATE) -> Ports:
    """A sequence ``x`` -> ``y``, and tensors of one shape by name."""
    sides = []
    for side, names in (("x", inputs), ("y", outputs)):
        found = [Port(side, "float32", ("batch", "time", 8 if side == "x" else 3))]
        sides.append({p.name: p for p in found + [Port(name, "float32", shape) for name in names.split()]})
    return Ports(*sides)


NAMES = [
    ("h", "hn"),
    ("h0 c0", "hn cn"),
    ("h c", "h_next c_next"),
    ("state", "stateN"),
    ("state", "state_out"),
    ("hidden_in cell_in", "hidden_out cell_out"),
    ("cache_0 cache_1 cache_10", "new_cache_0 new_cache_1 new_cache_10"),
    ("past_h past_c", "present_h present_c"),
    ("past_x", "x_"),
    ("prev_state", "state"),
    ("hx cx", "hy cy"),
    ("h_0 h_1", "h_0_out h_1_out"),
    ("in_cache1 in_cache2", "out_cache1 out_cache2"),
    ("h0", "h1"),
]


@pytest.mark.parametrize(("inputs", "outputs"), NAMES, ids=[f"{i} -> {o}" for i, o in NAMES])
def test_pairs_are_found_by_name(inputs: str, outputs: str) -> None:
    """Whatever the order of the outputs, each state finds its own."""
    want = tuple(zip(inputs.split(), outputs.split(), strict=True))
    for order in itertools.permutations(outputs.split()):
        assert find_pairs(ports(inputs, " ".join(order)), (), ()) == want


def test_the_fewer_markers_are_dropped_the_better_the_fit() -> None:
    """An index is no marker where names fit with it."""
    assert score("cache_0", "new_cache_0") > score("cache_0", "new_cache_1")
    assert score("h", "c_next") == 0


def test_sequences_are_no_states() -> None:
    """``audio_in`` comes out changed, it does not come back; ``past_x`` does."""
    assert score("audio_in", "audio_out") == score("x", "y") == score("input", "output") == 0
    assert score("past_x", "x") > 0


def test_names_that_say_nothing_leave_the_shape() -> None:
    """One input and one output of the same shape and type, and no more, are a state."""
    assert find_pairs(ports("onnx::1", "17"), (), ()) == (("onnx::1", "17"),)


AMBIGUOUS: list[tuple[str, str, tuple[Pair, ...], str]] = [
    ("q w", "17 18", (), "may come back as 17, 18; give --state q:17"),
    ("h", "h_new h_out", (), "may come back as h_new, h_out"),
    ("h_in h_prev", "h", (), "may be the next of h_in, h_prev; give --state h_in:h"),
    ("q", "", (), "no states found"),
    ("h", "hn", (("z", "hn"),), "input 'z', which the graph does not have"),
    ("h", "hn", (("h", "z"),), "output 'z', which the graph does not have"),
    ("h", "hn", (("x", "hn"),), "differ in shape or type"),
    ("h", "hn", (("x", "y"),), "--state x:y cannot be"),
]


@pytest.mark.parametrize(("inputs", "outputs", "given", "sentence"), AMBIGUOUS, ids=[a[3] for a in AMBIGUOUS])
def test_what_is_not_clear_is_asked(inputs: str, outputs: str, given: tuple[Pair, ...], sentence: str) -> None:
    """The candidates are shown, with the option to give."""
    with pytest.raises(ExportError, match=sentence.replace("(", r"\(")):
        find_pairs(ports(inputs, outputs), given, ())


def test_what_is_given_goes_before_what_is_found() -> None:
    """A correction settles an ambiguous name, and the others are still found."""
    found = find_pairs(ports("h_in h_prev c", "h cn"), (("h_prev", "h"),), ("h_in",))
    assert found == (("h_prev", "h"), ("c", "cn"))


def test_some_input_is_a_sequence() -> None:
    """A graph all of whose inputs look like states is asked about."""
    only = Ports({"h": Port("h", "float32", STATE)}, {"hn": Port("hn", "float32", STATE)})
    with pytest.raises(ExportError, match="every input looks like a state"):
        find_pairs(only, (), ())


def test_a_state_keeps_its_type_and_shape() -> None:
    """A name that fits does not make a state of tensors that do not."""
    wide = Ports(
        {"x": Port("x", "float32", ("b", 8)), "h": Port("h", "float32", ("b", 16))},
        {"hn": Port("hn", "float64", ("b", 16)), "h_out": Port("h_out", "float32", ("b", 15))},
    )
    with pytest.raises(ExportError, match="no states found"):
        find_pairs(wide, (), ())


def test_one_letter_before_a_name_is_no_marker() -> None:
    """``yf`` is not the next ``f``, whatever their shapes."""
    assert find_pairs(ports("h f", "hn yf"), (), ()) == (("h", "hn"),)


def test_an_input_may_be_denied() -> None:
    """Where all inputs look like states, one is said to be none, or the others are given."""
    alike = ports("in0 in1 in2", "out0 out1 out2")
    del alike.inputs["x"], alike.outputs["y"]
    told = (("in1", "out1"), ("in2", "out2"))
    with pytest.raises(ExportError, match="such as --state in0:none"):
        find_pairs(alike, (), ())
    assert find_pairs(alike, (("in0", "none"),), ()) == told
    assert find_pairs(alike, told, ()) == told
    with pytest.raises(ExportError, match="input 'z', which the graph does not have"):
        find_pairs(alike, (("z", "none"),), ())
