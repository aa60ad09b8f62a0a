"""The reader of strace's records, on which the tests of durability stand."""

from pathlib import Path

import pytest

from tests.support.strace import acknowledged, ended, parse, synced_bytes

LOG = Path("/data/s.db-wal")
WRITE = '7  pwrite64(5</data/s.db-wal>, "\\0"..., 4096, {}) = 4096'
SYNC = "7  fdatasync(5</data/s.db-wal>) = 0"
BEGUN, RETURNED = "7  fdatasync(5</data/s.db-wal> <unfinished ...>", "7  <... fdatasync resumed>) = 0"
ANSWER = '8  write(9<TCP:[127.0.0.1:80->127.0.0.1:5]>, "HTTP/1.1 200 OK\\r\\n\\r\\n{}", 99) = 99'


def seen(*lines: str) -> list[tuple[bool, bool]]:
    """Of each answer: whether the log was written to, and synced."""
    return [(told.written, told.synced) for told in acknowledged(parse(lines), LOG)]


def test_a_synced_answer() -> None:
    """The log was written, then synced, then the answer was sent."""
    assert seen(WRITE.format(32), SYNC, ANSWER) == [(True, True)]


@pytest.mark.parametrize(
    "lines",
    [
        (WRITE.format(32), ANSWER),
        (WRITE.format(32), ANSWER, SYNC),
        (SYNC, WRITE.format(32), ANSWER),
        (WRITE.format(32), "7  fdatasync(5</data/s.db-wal>) = -1 EIO (Input/output error)", ANSWER),
        (WRITE.format(32), "7  fdatasync(4</data/s.db>) = 0", ANSWER),
        (WRITE.format(32), BEGUN, ANSWER, RETURNED),
        (BEGUN, "8" + WRITE.format(32)[1:], RETURNED, ANSWER),
    ],
    ids=["never", "too-late", "before", "failed", "another-file", "not-returned", "begun-before"],
)  # fmt: skip
def test_an_answer_that_came_too_early(lines: tuple[str, ...]) -> None:
    """A sync counts only where it began behind the write and returned without an error before the answer."""
    assert seen(*lines) == [(True, False)]


def test_calls_of_several_threads_are_told_apart() -> None:
    """An unfinished call goes on where its own thread resumes it."""
    lines = [
        WRITE.format(32).replace(") = 4096", " <unfinished ...>"),
        "9  write(3</dev/null>, \"x\", 1 <unfinished ...>",
        "7  <... pwrite64 resumed>) = 4096",
        "9  <... write resumed>) = 1",
        "9  +++ exited with 0 +++",
        BEGUN,
        RETURNED,
        ANSWER,
    ]  # fmt: skip
    assert [(call.name, call.began, call.ended) for call in parse(lines)] == [
        ("pwrite64", 0, 2), ("write", 1, 3), ("fdatasync", 5, 6), ("write", 7, 7),
    ]  # fmt: skip
    assert seen(*lines) == [(True, True)]


def test_each_answer_is_looked_at_by_itself() -> None:
    """What was written for one does not count for the next; other sockets and refusals are no answers to clients."""
    inner = ANSWER.replace("TCP:[127.0.0.1:80->127.0.0.1:5]", 'UNIX-STREAM:[1->2,"/tmp/x/http"]')
    refused = ANSWER.replace("200 OK", "409 Conflict")
    assert seen(WRITE.format(32), SYNC, inner, ANSWER, refused, ANSWER) == [(True, True), (False, True)]


def test_what_is_sure_to_be_on_the_disk() -> None:
    """As far as the last sync reaches; what was written behind it may be lost."""
    assert synced_bytes(parse([WRITE.format(32), SYNC, WRITE.format(4128)]), LOG) == 4128
    assert synced_bytes(parse([WRITE.format(32), WRITE.format(4128)]), LOG) == 0


def test_the_end_of_a_record() -> None:
    """A record is whole when the last that it says of every thread is how that ended."""
    assert not ended([])
    assert not ended([SYNC, ANSWER, "7  +++ killed by SIGKILL +++"])
    assert ended([SYNC, ANSWER, "7  +++ killed by SIGKILL +++", "8  +++ exited with 0 +++"])
