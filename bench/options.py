"""What is to be measured, read from the words of the command line. Knows nothing of how it is measured."""

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from bench.errors import BenchError
from bench.figures import QUANTILES

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_SLO = re.compile(rf"({'|'.join(map(re.escape, QUANTILES))})=(\d+(?:\.\d+)?)({'|'.join(_UNITS)})")
TRANSPORTS = ("http", "websocket")
_MOST_PROCESSES = 8  # unless told: the server needs cores, too


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        """As the Host header names it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Slo:
    """A latency that must not be exceeded: of which share of the requests, in seconds."""

    quantile: str
    limit_s: float


@dataclass(frozen=True)
class Options:
    """Everything that can be chosen. ``rate`` is requests per second of each session; None: a closed loop."""

    sessions: tuple[int, ...]
    rate: float | None
    steps: int
    seconds: float
    warm_up: float
    processes: int
    seed: int
    slo: Slo | None
    transport: str = "http"
    in_flight: int = 1
    binary: bool = False

    def __post_init__(self) -> None:
        _check("sessions", min(self.sessions) >= 1, "numbers from 1 on, with commas between them")
        _check("rate", self.rate is None or (math.isfinite(self.rate) and self.rate > 0), "a number above 0")
        _check("rate", self.rate is None or sys.platform == "linux", "Linux, whose timers are fine enough")
        _check("steps", self.steps >= 1, "a number from 1 on")
        _check("seconds", math.isfinite(self.seconds) and self.seconds > 0, "a number above 0")
        _check("warm-up", math.isfinite(self.warm_up) and self.warm_up >= 0, "a number from 0 on")
        _check("transport", self.transport in TRANSPORTS, " or ".join(TRANSPORTS))
        _check("in-flight", self.in_flight >= 1, "a number from 1 on")
        _check("in-flight", self.in_flight == 1 or self.transport == "websocket", "--transport websocket with it")
        _check("binary", not self.binary or self.transport == "websocket", "--transport websocket with it")
        _check("processes", self.processes >= 1, "a number from 1 on")

    def to_json(self) -> Mapping[str, Any]:
        """For the report."""
        return asdict(self)


def _check(option: str, good: bool, expected: str) -> None:
    if not good:
        raise BenchError(f"--{option}: expected {expected}")


def address(url: str) -> Address:
    """Host and port of ``http://HOST[:PORT]``."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or parts.scheme != "http" or parts.path not in ("", "/") or parts.query or parts.username:
        raise BenchError(f"URL {url!r}: expected http://HOST:PORT")
    return Address(host, 80 if port is None else port)


def counts(text: str) -> tuple[int, ...]:
    """``1,16,64`` as numbers."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise BenchError(f"--sessions: expected numbers with commas between them, got {text!r}") from None


def slo(text: str) -> Slo:
    """``p99=20ms`` as a limit."""
    found = _SLO.fullmatch(text)
    if found is None or float(found[2]) == 0:
        raise BenchError(f"--slo: expected something like p99=20ms (of {', '.join(QUANTILES)}), got {text!r}")
    return Slo(found[1], float(found[2]) * _UNITS[found[3]])


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def usual_processes() -> int:
    """Half of the cores: the rest is the server's."""
    return max(1, min(_MOST_PROCESSES, cores() // 2))
