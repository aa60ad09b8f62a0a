"""System calls of a server, as strace records them, and what they say of the order of log and answers.

Owns strace's format. A record is made with ``under(path)`` in front of the command.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_CALLS = "pwrite64,fsync,fdatasync,write,writev,sendto,sendmsg"
_BEGUN = re.compile(r"(\d+) +(\w+)\(\d+<(.*?)>(?=[,) ])(.*)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")
_PLACE = re.compile(r", (\d+), (\d+)\) += \d+$")  # bytes and offset, of pwrite64
_END = " +++ "
_UNFINISHED = "<unfinished ...>"
_ANSWER = '"HTTP/1.1 2'  # at the begin of what a socket gets: a success


def under(record: Path) -> list[str]:
    """Words that run what follows them under strace, as the process that the caller started, its children included."""
    wanted = f"-s 200 -yy -e trace={_CALLS}"
    return ["strace", "-D", "-f", "--seccomp-bpf", *wanted.split(), "-o", str(record)]


def ended(lines: Iterable[str]) -> bool:
    """Whether every thread in a record has come to its end."""
    alive = {line.split(" ", 1)[0]: _END not in line for line in lines}
    return bool(alive) and not any(alive.values())


@dataclass
class Call:
    """One call: ``target`` is what its file descriptor stands for; ``began`` and ``ended`` are lines of the record."""

    name: str
    target: str
    words: str
    began: int
    ended: int | None = None

    @property
    def ok(self) -> bool:
        """Whether it has returned without an error."""
        return self.ended is not None and not re.search(r"\) += (-1|\?)", self.words)

    @property
    def end_offset(self) -> int:
        """Of pwrite64: the place in the file behind what it wrote."""
        found = _PLACE.search(self.words)
        assert found, self.words
        return int(found[1]) + int(found[2])


def parse(lines: Iterable[str]) -> list[Call]:
    """The calls in the order in which they began; what is no call on a file or socket is left out."""
    calls: list[Call] = []
    unfinished: dict[str, Call] = {}
    for at, line in enumerate(lines):
        if found := _BEGUN.match(line):
            process, name, target, words = found.groups()
            call = Call(name, target, words.removesuffix(_UNFINISHED), at)
            calls.append(call)
            if words.endswith(_UNFINISHED):
                unfinished[process] = call
            else:
                call.ended = at
        elif (found := _RESUMED.match(line)) and found[1] in unfinished:
            call = unfinished.pop(found[1])
            assert call.name == found[2], line
            call.words += found[3]
            call.ended = at
    return calls


@dataclass(frozen=True)
class Acknowledged:
    """An answer to a client; ``written``: the log was written to since the one before; ``synced``: all that was in the
    log when the answer was sent had reached the disk."""

    words: str
    written: bool
    synced: bool


def acknowledged(calls: Iterable[Call], log: Path) -> list[Acknowledged]:
    """The successes that were told over TCP, one for each write that begins with one."""
    told: list[Acknowledged] = []
    written, last_write = False, -1
    syncs = list[Call]()
    for call in calls:
        if call.target == str(log):
            if call.name == "pwrite64":
                written, last_write = True, call.ended if call.ended is not None else call.began
            else:
                syncs.append(call)
        elif call.target.startswith("TCP") and _ANSWER in call.words:
            synced = any(s.ok and last_write < s.began and (s.ended or 0) < call.began for s in syncs)
            told.append(Acknowledged(call.words, written, synced))
            written = False
    return told


def synced_bytes(calls: Iterable[Call], log: Path) -> int:
    """How much of a log, from its beginning, is sure to be there after a power cut. It must not have begun anew."""
    ours = [call for call in calls if call.target == str(log)]
    syncs = [call.began for call in ours if call.name != "pwrite64" and call.ok]
    last = max(syncs, default=-1)
    writes = [call for call in ours if call.name == "pwrite64"]
    return max((w.end_offset for w in writes if w.ended is not None and w.ended < last), default=0)
