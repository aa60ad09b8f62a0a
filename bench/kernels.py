"""Where the time of a tick goes, read from ONNX Runtime's own profile."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.engine import ort
from service.engine.providers import CPU, CUDA, open_session, session_options
from service.engine.residence import banks_of, putting, resident
from service.engine.resident import Opened, ResidentEngine
from service.engine.runtime import Engine
from service.settings import Settings


@dataclass(frozen=True)
class Shares:
    """Shares of the time of ticks: in the call of ONNX Runtime, and in kernels.

    ``measured`` tells what the latter are: the GPU's own times where this build of ONNX Runtime can ask CUDA for them,
    else the nodes' on the host. On a GPU, a node's time is that of its launch; kernels run on behind it.
    """

    call: float
    kernels: float
    measured: str


def shares(engine: Engine, slots: int, settings: Settings, tick: Callable[[Engine], float], ticks: int) -> Shares:
    """Run ticks of the artifact with its rows on the device, under ONNX Runtime's profiler.

    ``tick`` runs one and returns its seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        watched, session = _watched(engine, slots, settings, Path(folder, "profile"))
        tick(watched)
        begin_us = time.perf_counter()
        seconds = sum(tick(watched) for _ in range(ticks))
        lasted = time.perf_counter() - begin_us
        events = json.loads(Path(session.end_profiling()).read_text())
    return read(events, seconds, lasted)


def read(events: list[dict[str, Any]], seconds: float, lasted_s: float) -> Shares:
    """The shares of ``seconds`` that the events of the last ``lasted_s`` seconds of a profile tell."""
    end = max(event["ts"] + event.get("dur", 0) for event in events)
    late = [event for event in events if event["ts"] >= end - lasted_s * 1e6]
    call = sum(event["dur"] for event in late if event["cat"] == "Session" and event["name"] == "model_run")
    kernels = [event["dur"] for event in late if event["cat"] == "Kernel"]
    nodes = [event["dur"] for event in late if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
    measured = "on the device" if kernels else "of the nodes, on the host"
    return Shares(call / 1e6 / seconds, sum(kernels or nodes) / 1e6 / seconds, measured)


def _watched(
    engine: Engine, slots: int, settings: Settings, prefix: Path
) -> tuple[ResidentEngine, ort.InferenceSession]:
    banks = banks_of(engine.signature)
    options = session_options(settings)
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    chosen = [CUDA, CPU] if engine.provider == "cuda" else [CPU]
    session = ort.InferenceSession(resident(engine.path.read_bytes(), banks), options, providers=chosen)
    putter = open_session(putting(banks), settings)
    return ResidentEngine(Opened(session, putter), engine, slots), session
