"""The README keeps its word: its tour runs, its tables and its file tree are those of the code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import Settings
from tests.support.server import Server, create

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
# What is made on the spot and not kept, as in .gitignore.
UNKEPT = {".git", ".venv", "build", "data", "runs", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
UNKEPT |= {".hypothesis", ".coverage"}
SHIPPED = {"language", "sine"}


def _between(start: str, end: str) -> str:
    found = re.search(rf"<!-- {start}.*?-->\n(.*?)<!-- {end} -->", README, re.DOTALL)
    assert found, f"the README has no section from {start!r} to {end!r}"
    return found[1]


def test_settings_table() -> None:
    """The table holds every setting with its default and its sentence, and nothing else."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", _between("settings", "end of the settings"), re.MULTILINE)
    expected = [
        (name, f"`{field.get_default()}`", str(field.description).replace("|", "\\|"))
        for name, field in Settings.model_fields.items()
    ]
    assert rows == expected


def test_file_tree() -> None:
    """The tree names every file that is kept, each with a line of its own, and no other."""
    told: set[str] = set()
    folders: list[str] = []
    for line in _between("files", "end of the files").splitlines():
        if not (found := re.match(r"^( *)([\w.\-]+/?)(?:  +\S.*)?$", line)):
            continue
        depth = len(found[1]) // 2
        folders[depth:] = [found[2]]
        if not found[2].endswith("/"):
            told.add("".join(folders))
    assert told == _kept(ROOT)


def _kept(folder: Path) -> set[str]:
    kept = set()
    for path in folder.rglob("*"):
        parts = path.relative_to(ROOT).parts
        unkept = UNKEPT & set(parts) or any(p.endswith(".egg-info") for p in parts)
        unkept = unkept or (parts[0] == "model_repository" and not SHIPPED & set(parts))  # a user's own models
        if path.is_file() and not unkept and path.stat().st_size > 0:  # __init__.py files are empty
            kept.add("/".join(parts))
    return kept


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tour is made of curl commands, and there is no curl")
def test_tour(tmp_path: Path) -> None:
    """Every command of the tour works as it stands, against the shipped models."""
    tour = _between("tour", "end of the tour")
    script = re.search(r"```sh\n(.*?)```", tour, re.DOTALL)
    assert script
    with Server(tmp_path, ROOT / "model_repository") as server:
        commands = script[1].replace("URL=http://127.0.0.1:8000", f"URL={server.url}").replace("curl ", "curl -sS ")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "urn:lstm-serve:problem" not in done.stdout
        assert '"position":300' in done.stdout
        assert "data: [DONE]" in done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="these are curl commands, and there is no curl")
def test_mercy(tmp_path: Path) -> None:
    """A server that the commands themselves started is killed and goes on; no other process is touched."""
    script = re.search(r"```sh\n(.*?)```", _between("mercy", "end of mercy"), re.DOTALL)
    assert script
    with Server(tmp_path, ROOT / "model_repository") as server, server.client() as client:
        wave = server.url + create(client, "sine")
        client.post(f"{wave}/steps", json={"inputs": [n / 300 for n in range(300)]})
    chosen = {"port": wave.split(":")[2].partition("/")[0], "store": f"sqlite:{tmp_path}/sessions.db"}
    environment = os.environ | {f"LSTM_SERVE_{name.upper()}": value for name, value in chosen.items()} | {"WAVE": wave}
    commands = (
        script[1].replace(".venv/bin/lstm-serve", f"{sys.executable} lstm_serve.py").replace("curl ", "curl -sS ")
    )
    with (tmp_path / "told").open("w") as told:
        done = subprocess.run(
            ["bash", "-u", "-c", commands],
            cwd=ROOT,
            env=environment,
            stdout=told,
            stderr=told,
            timeout=120,
            check=False,
        )
    answers = re.findall(r'"position":(\d+)', (tmp_path / "told").read_text())
    assert (done.returncode, answers[:3]) == (0, ["301"] * 3)  # behind them the last request's position is told


def test_module(tmp_path: Path) -> None:
    """The module of "Bring your own model" becomes an artifact as it stands, and is served."""
    block = re.search(r"`{3}python\n(.*?)`{3}", _between("module", "end of the module"), re.DOTALL)
    assert block
    done = subprocess.run(
        [sys.executable, "-c", block[1]], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "input readings: float32" in done.stdout
    with Server(tmp_path, tmp_path / "model_repository") as server, server.client() as client:
        session = create(client, "surprise")
        told = client.post(f"{session}/steps", json={"inputs": [[0.1, 0.2, 0.3, 0.4]] * 3, "return": "all"}).json()
        assert told["position"] == 3
        assert len(told["outputs"]["surprise"]) == 3
