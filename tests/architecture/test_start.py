"""What the processes of a server import: their start is short, and stays so."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each takes from tens of milliseconds to seconds to import, and serves nothing.
HEAVY = (
    *("torch", "onnx", "onnxscript", "matplotlib", "pandas", "scipy", "sympy", "safetensors"),  # training and export
    *("onnxruntime.quantization", "onnxruntime.transformers", "onnxruntime.tools"),
    *("model", "export", "bench", "tests", "lstm_serve", "typer", "rich"),  # the command line and the other stations
    *("httpx", "requests", "aiohttp", "fastapi.testclient", "starlette.testclient"),  # clients
    *("pytest", "hypothesis", "unittest", "doctest", "pdb", "numpy.testing", "numpy.f2py", "IPython"),  # tests
    *("redis", "hiredis"),  # where sessions are in a file
    *("jinja2", "yaml", "watchfiles", "setuptools", "pkg_resources", "tkinter", "curses"),
)
ENGINE = ("onnxruntime", "sqlite3", "service.engine", "service.stores.sqlite", "service.app")

WHOLE = """
import service.__main__, service.server
from service.app import build
from service.settings import load_settings
build(load_settings(durability="memory", provider="cpu", log_level="error"))
"""
FRONT, SUPERVISOR = "import service.fronts.front", "import service.__main__, service.fronts.supervisor"
NOT_NEEDED = {
    WHOLE: HEAVY,
    FRONT: (*HEAVY, *ENGINE),
    SUPERVISOR: (*HEAVY, *ENGINE, "fastapi", "uvicorn", "uvloop", "numpy", "prometheus_client"),
}
NAMES = {WHOLE: "whole", FRONT: "front", SUPERVISOR: "supervisor"}


@cache
def imported(program: str) -> frozenset[str]:
    """Every module that a process has imported once it is ready; the whole server has loaded the shipped models."""
    told = f"{program}\nimport sys; print(*sys.modules)"
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-c", told]
    done = subprocess.run(command, env=unmeasured, capture_output=True, cwd=ROOT, text=True, check=True)
    return frozenset(done.stdout.split())


@pytest.mark.parametrize(
    ("program", "module"),
    [
        pytest.param(program, module, id=f"{NAMES[program]}-{module}")
        for program in NOT_NEEDED
        for module in NOT_NEEDED[program]
    ],
)
def test_a_process_does_not_import(program: str, module: str) -> None:
    """What it has no need of is not imported, though it is installed: neither by us nor by a library."""
    assert {name for name in imported(program) if name == module or name.startswith(f"{module}.")} == set()


def test_a_server_imports_what_serves() -> None:
    """The lists above are held against processes that are really there."""
    assert {"fastapi", "uvicorn", "onnxruntime", "service.engine.runtime", "service.api.steps"} <= imported(WHOLE)
    assert {"uvicorn", "service.api.steps", "service.fronts.front"} <= imported(FRONT)
    assert {"asyncio", "service.fronts.supervisor"} <= imported(SUPERVISOR)
