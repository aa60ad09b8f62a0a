"""What a server holds at a moment: memory, files, threads, what is on the disk, sessions; through Linux's /proc.

Knows nothing of the load.
"""

import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from bench.options import Address
from bench.processor import cpu_seconds

_SESSIONS = re.compile(r'^lstm_serve_sessions\{where="(live|resting)"\} (\S+)$', re.MULTILINE)
# SQLite's wal-index: frames in the log, and how many of them were copied back (sqlite.org/walformat.html, 2.1 and 2.2).
_FRAMES_AT, _COPIED_AT = 16, 96
_ANSWER_LIMIT_S = 30.0


@dataclass(frozen=True)
class Vitals:
    """Sums over the server's processes; sizes in bytes, of SQLite only. ``uncopied``: frames of the log that are not
    yet in the database."""

    memory: int
    files: int
    threads: int
    cpu_s: float
    live: int
    resting: int
    database: int = 0
    log: int = 0
    uncopied: int = 0


def look(address: Address, processes: list[int], database: Path | None) -> Vitals:
    """A look from outside; OSError where a process is gone."""
    sessions = _sessions(address)
    held = Vitals(
        memory=sum(_status(pid, "RssAnon") * 1024 for pid in processes),
        files=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes),
        threads=sum(_status(pid, "Threads") for pid in processes),
        cpu_s=cpu_seconds(processes),
        live=sessions["live"],
        resting=sessions["resting"],
    )
    if database is None:
        return held
    return Vitals(
        **{name: getattr(held, name) for name in ("memory", "files", "threads", "cpu_s", "live", "resting")},
        database=_size(database),
        log=_size(_beside(database, "-wal")),
        uncopied=_uncopied(_beside(database, "-shm")),
    )


def _status(pid: int, name: str) -> int:
    """A number of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def _sessions(address: Address) -> dict[str, int]:
    connection = HTTPConnection(address.host, address.port, timeout=_ANSWER_LIMIT_S)
    try:
        connection.request("GET", "/metrics")
        return {
            where: int(float(value)) for where, value in _SESSIONS.findall(connection.getresponse().read().decode())
        }
    finally:
        connection.close()


def _beside(database: Path, ending: str) -> Path:
    return database.with_name(database.name + ending)


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _uncopied(index: Path) -> int:
    with index.open("rb") as file:
        head = file.read(_COPIED_AT + 4)
    (frames,), (copied,) = (struct.unpack_from("=I", head, at) for at in (_FRAMES_AT, _COPIED_AT))
    return max(0, int(frames) - int(copied))
