"""The cells side by side: as many parameters each, measured through the service's engine, told in a table."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import model.text
from bench import cells
from bench.cells import FORECAST, LANGUAGE, MARKS, Row, hidden_for, measure, parameters, write
from model.cells import CELLS
from model.options import Options


@pytest.fixture(autouse=True)
def _keep_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("base", [LANGUAGE, FORECAST], ids=["language", "forecast"])
@pytest.mark.parametrize("cell", CELLS)
def test_cells_have_as_many_parameters(cell: str, base: Options) -> None:
    """Within 1 % of the LSTM's; its own width is that of the options."""
    width = base.embedding or 1
    budget = parameters("lstm", width, base.hidden, base.layers)
    hidden = hidden_for(cell, width, base.layers, budget)
    assert parameters(cell, width, hidden, base.layers) == pytest.approx(budget, rel=0.01)
    if cell == "lstm":
        assert hidden == base.hidden


@pytest.mark.parametrize("task", ["language", "sine"])
def test_each_cell_is_trained_exported_and_timed(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny networks, a moment of training: every column of the table is there."""
    monkeypatch.setattr(model.text, "default_corpus", lambda: "so much depends upon a red wheel barrow\n" * 100)
    monkeypatch.setattr(cells, "VALIDATIONS", 1)
    monkeypatch.setattr(cells, "REPEATS", 1)
    base = LANGUAGE if task == "language" else FORECAST
    rows = measure(replace(base, hidden=6, layers=1, sequence=20, rollout=0, max_seconds=0.01), tmp_path)
    assert [row.cell for row in rows] == list(CELLS)
    for row in rows:
        assert row.updates >= 1
        assert len(row.losses) == (1 if task == "language" else 2)
        assert row.artifact_bytes > 1000
        assert row.state_bytes == len(CELLS[row.cell].states) * 4 * row.hidden
        assert row.least_rows >= 1
        assert 0 < row.batched_us < 1e6
        assert 0 < row.alone_us < 1e6


def test_tables_replace_what_stands_between_the_marks(tmp_path: Path) -> None:
    """The words around them stay."""
    first, last = MARKS
    (tmp_path / "cells.md").write_text(f"# Cells\n\n{first}\nold\n{last}\n\nAdvice.\n")
    rows = [
        Row("language", "gru", 149, 230_205, 2000, (1.25,), 1_012_345, 1192, 4, 78.2, 10.52),
        Row("forecast", "gru", 74, 50_394, 300, (0.01, 0.5), 205_000, 592, 4, 46.0, 3.9),
    ]
    write(tmp_path, "python -m bench.cells --out docs", [LANGUAGE, FORECAST], rows)
    page = (tmp_path / "cells.md").read_text()
    assert "old" not in page
    assert page.startswith(f"# Cells\n\n{first}\n| language |")
    assert page.endswith(f"|\n{last}\n\nAdvice.\n")
    assert "| `gru` | 149 | 230,205 | 2,000 | 1.250 | 1012 | 78 | 10.5 | 1,192 |" in page
    assert "| `gru` | 74 | 50,394 | 300 | 0.0100 | 0.5000 | 205 | 46 | 3.9 | 592 |" in page
    document = json.loads((tmp_path / "cells.json").read_text())
    assert document["command"] == "python -m bench.cells --out docs"
    assert "onnxruntime" in document["versions"]
    assert document["rows"][0]["losses"] == [1.25]
