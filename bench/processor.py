"""CPU time of the server, if it runs on this machine: found by the port it listens on, through Linux's /proc."""

import math
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bench.options import Address

_PROC = Path("/proc")
_LISTEN = "0A"
_FRONT = "service.fronts."  # in the command lines of a server of several processes


def server_processes(address: Address) -> list[int]:
    """Who listens there, with all processes of the same server; none where it is elsewhere or somebody else's."""
    if not _PROC.joinpath("net", "tcp").exists() or not _local(address):
        return []
    sockets = {f"socket:[{inode}]" for inode in _listening(address.port)}
    found = {pid for pid in _pids() if not sockets.isdisjoint(_files(pid))}
    parents = {pid: fields[1] for pid in _pids() if (fields := _stat(pid))}
    while children := {pid for pid, parent in parents.items() if int(parent) in found} - found:
        found |= children
    fronts = {pid for pid in parents if _FRONT in _command(pid)}
    supervisors = {int(parents[pid]) for pid in found & fronts}
    return sorted(found | supervisors | {pid for pid in fronts if int(parents[pid]) in supervisors})


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of the processes so far, of all their threads, to 10 ms each; NaN where one is gone."""
    stats = [_stat(pid) for pid in pids]
    if not all(stats):
        return math.nan
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def _local(address: Address) -> bool:
    """Whether both ends of a connection are of this machine."""
    with suppress(OSError), socket.create_connection((address.host, address.port), timeout=5.0) as connection:
        return bool(connection.getsockname()[0] == connection.getpeername()[0])
    return False


def _listening(port: int) -> Iterator[str]:
    """The inodes of the sockets that listen on a port."""
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (_PROC / "net" / name).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    yield fields[9]


def _pids() -> list[int]:
    return [int(path.name) for path in _PROC.iterdir() if path.name.isdigit()]


def _files(pid: int) -> Iterator[str]:
    with suppress(OSError):  # gone, or somebody else's
        for path in (_PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):
                yield str(path.readlink())


def _command(pid: int) -> str:
    with suppress(OSError):  # gone
        return (_PROC / str(pid) / "cmdline").read_text(errors="replace")
    return ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name; none where the process is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []
