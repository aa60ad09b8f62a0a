"""The bytes of a session: the layout of its row, and the answers that are kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from service.errors import UndecodableState
from service.state import Answer, RowLayout, axes_moved, checksum, decode_answers, encode_answers, intact, leap
from tests.support.records import plain, record

# Every dtype that a state may have, batch axes at every place, a scalar row, and bytes that align with nothing.
FIELDS: list[tuple[str, str, tuple[int, ...], int]] = [
    ("flag", "bool", (), 0),
    ("h", "float32", (2, 3), 1),
    ("c", "float64", (3,), 1),
    ("half", "float16", (5,), 0),
    ("steps", "int64", (), 0),
    ("window", "int32", (2, 1, 2), 3),
]
LAYOUT = RowLayout(FIELDS)
# The same, in an order in which each stands where numbers of its size may stand: a row alone is not copied then.
ALIGNED = [
    *FIELDS[2:3],
    *FIELDS[4:5],
    ("lone", "int64", (2,), None),
    *FIELDS[1:2],
    *FIELDS[5:6],
    ("pad", "bool", (8,), 1),
]


def batch(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A state of each field for a batch, as the graph has it."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, dtype, shape, axis in FIELDS:
        values = random.normal(size=(rows, *shape)) * 100
        tensors[name] = np.moveaxis(values.astype(dtype), 0, axis)
    return tensors


def test_a_row_alone_lies_in_the_graph_as_in_a_batch() -> None:
    """Its tensors are parts of the row, read-only, in the graph's axes; scattered they are the row again."""
    layout = RowLayout(ALIGNED)
    (row, other) = (np.random.default_rng(seed).bytes(layout.row_bytes) for seed in range(2))
    alone = layout.gather([row])
    batched = [field for field in ALIGNED if field[3] is not None]
    both = RowLayout([*batched]).gather([row[:32] + row[48:], other[:32] + other[48:]])
    for name, dtype, shape, axis in batched:
        assert alone[name].dtype == np.dtype(dtype)
        assert alone[name].tobytes() == np.take(both[name], [0], axis).tobytes()
        assert alone[name].shape == (*shape[:axis], 1, *shape[axis:])
        assert np.shares_memory(alone[name], np.frombuffer(row, np.uint8))
        assert not alone[name].flags.writeable
    assert alone["lone"].shape == (2,)
    assert layout.scatter(alone, 1) == [row]
    with pytest.raises(UndecodableState, match="has 3 bytes"):
        layout.gather([b"odd"])


@given(st.integers(1, 40), st.integers(0, 1000))
def test_gather_undoes_scatter(rows: int, seed: int) -> None:
    """Rows of a batch, put together again in any order, are the batch in that order, to the last bit."""
    tensors = batch(rows, seed)
    packed = LAYOUT.scatter(tensors, rows)
    order = np.random.default_rng(seed).permutation(rows)
    gathered = LAYOUT.gather([packed[i] for i in order])
    for name, dtype, _, axis in FIELDS:
        expected = np.take(tensors[name], order, axis)
        assert (gathered[name].dtype, gathered[name].shape) == (np.dtype(dtype), expected.shape)
        assert gathered[name].tobytes() == expected.tobytes()
        assert gathered[name].flags.c_contiguous


def test_a_row_has_the_bytes_of_its_tensors_and_no_more() -> None:
    """Rows carry no padding: their size is the sum of their tensors'."""
    assert LAYOUT.row_bytes == 1 + 6 * 4 + 3 * 8 + 5 * 2 + 8 + 4 * 4
    assert {(type(row), len(row)) for row in LAYOUT.scatter(batch(3), 3)} == {(bytes, LAYOUT.row_bytes)}


def test_the_bytes_of_a_row_mean_the_same_everywhere() -> None:
    """Little-endian, C order, one tensor after the other: a row can be read by another machine and another release."""
    layout = RowLayout([("a", "int32", (2,), 0), ("b", "float32", (1, 2), 1)])
    row = layout.pack_one({"a": np.array([1, 256]), "b": np.array([[1.0, -2.0]])})
    assert row.hex() == "01000000" + "00010000" + "0000803f" + "000000c0"


def test_packing_one_row_is_scattering_a_batch_of_one() -> None:
    """The initial row of a model is laid out like every other."""
    tensors = batch(1)
    alone = {name: np.take(tensors[name], 0, axis) for name, _, _, axis in FIELDS}
    assert [LAYOUT.pack_one(alone)] == LAYOUT.scatter(tensors, 1)


def test_scatter_leaves_out_what_filled_the_batch_up() -> None:
    """Only the first rows are sessions; the others were padding."""
    tensors = batch(5)
    assert LAYOUT.scatter(tensors, 2) == LAYOUT.scatter(tensors, 5)[:2]


@pytest.mark.parametrize("change", [lambda row: row[:-1], lambda row: row + b"\0", lambda row: b""])
def test_a_row_of_another_size_is_refused(change: object) -> None:
    """A row is never cut, filled up or replaced to make it fit, and its neighbours do not make up for it."""
    good = LAYOUT.scatter(batch(2), 2)
    with pytest.raises(UndecodableState):
        LAYOUT.gather([good[0], change(good[1])])  # type: ignore[operator]


@given(st.permutations(range(4)), st.integers(1, 3))
def test_axes_move_as_numpy_moves_them(order: list[int], count: int) -> None:
    """The permutation found out once gives what ``numpy.moveaxis`` would give each time."""
    array = np.empty((2, 3, 4, 5))
    source, target = tuple(order[:count]), tuple(sorted(order)[:count])
    moved = array.transpose(axes_moved(4, source, target))
    assert moved.shape == np.moveaxis(array, source, target).shape


def test_answers_come_back_as_they_were() -> None:
    """Types, shapes and bits of kept answers survive being written down; what was not kept stays so."""
    answers = record().answers
    assert [plain(a) for a in decode_answers(encode_answers(answers))] == [plain(a) for a in answers]
    assert decode_answers(encode_answers([])) == ()


def test_an_answer_knows_where_it_left_the_session_and_its_size() -> None:
    """Position and size are those of its steps and outputs."""
    answer = Answer(3, 4, b"", 0.0, {"y": np.zeros((4, 2), np.float32), "n": np.zeros(2, np.int64)})
    assert (answer.position, answer.size()) == (7, 48)
    assert Answer(3, 4, b"", 0.0, None).size() == 0


@pytest.mark.parametrize(
    "blob",
    [b"", b"\xc1", b"\x01", b"\x91\x01", b"\x91\x96\0\0\0\0\x81\xa1y\x93\xa3<f4\x91\x09\xc4\x01\0\xc0", b"\xff" * 9],
)
def test_bytes_that_are_no_answers_are_refused(blob: bytes) -> None:
    """What was not written by the service is named, not guessed at."""
    with pytest.raises(UndecodableState):
        decode_answers(blob)


@given(st.binary(), st.binary(), st.binary(), st.integers(0), st.integers(0, 7))
def test_a_flipped_bit_changes_the_checksum(row: bytes, output: bytes, answers: bytes, at: int, bit: int) -> None:
    """One wrong bit anywhere in a stored session is found."""
    session = replace(record(), position=3, revision=4, row=row, output=output)
    check = checksum(session, answers)
    assert intact(session, answers, check)
    flat = row + output + answers
    if flat:
        at %= len(flat)
        damaged = flat[:at] + bytes([flat[at] ^ (1 << bit)]) + flat[at + 1 :]
        cut = len(row), len(row) + len(output)
        flipped = replace(session, row=damaged[: cut[0]], output=damaged[cut[0] : cut[1]])
        assert not intact(flipped, damaged[cut[1] :], check)
    for numbers in ({"position": 3 ^ (1 << bit)}, {"revision": 4 ^ (1 << bit)}, {"expires_at": 1.0 + bit}):
        assert not intact(replace(session, **numbers), answers, check)


@pytest.mark.parametrize(
    "changed",
    [{"id": "b"}, {"owner": "b"}, {"model": "b"}, {"version": "2"}, {"fingerprint": "b"}, {"ttl_s": 1.0},
     {"created_at": 1.0}, {"gates": 1}],
)  # fmt: skip
def test_a_session_under_another_name_is_not_intact(changed: dict[str, object]) -> None:
    """Whatever is told apart by, or expires by, is under the checksum as well."""
    session = record()
    check = checksum(session, b"")
    assert not intact(replace(session, identity=replace(session.identity, **changed)), b"", check)


def test_a_number_may_be_whole() -> None:
    """A ttl of 60 comes back from a store as 60.0."""
    session = record()
    whole = replace(session, identity=replace(session.identity, ttl_s=60), expires_at=2_000)
    assert checksum(whole, b"") == checksum(replace(session, expires_at=2_000.0), b"")


def test_revisions_never_come_twice() -> None:
    """Two histories that began alike do not meet again."""
    one, other = ([sum(leap() for _ in range(n)) for n in range(1, 50)] for _ in range(2))
    assert len({*one, *other}) == len(one) + len(other)
    assert min(leap() for _ in range(100)) >= 1
