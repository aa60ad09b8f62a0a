"""The benchmark of a GPU, run on the CPU: what it prints, and what it says of answers that differ."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import cuda, kernels
from service.engine import ort, providers
from service.engine.runtime import Run
from service.state import Chunk
from tests.support import artifacts


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """The exit status, and what was printed."""
    monkeypatch.setattr("sys.argv", ["cuda", "--provider", "cpu", "--seconds", "0.01", *arguments])
    return cuda.main(), capsys.readouterr().out


def test_it_measures_each_size_in_both_types(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Device and versions, then for each artifact its placement, its difference from the CPU, and a line per batch."""
    status, text = printed(capsys, monkeypatch, "--sizes", "1x8", "2x16", "--batches", "1", "3")
    assert status == 0
    assert re.match(r"device: .+\nversions: Python .+ONNX Runtime", text)
    assert re.findall(r"^(\S+, float\d\d): a row has (\d+) bytes$", text, re.MULTILINE) == [
        ("1x8, float32", "64"),
        ("1x8, float16", "32"),
        ("2x16, float32", "256"),
        ("2x16, float16", "128"),
    ]
    assert text.count("largest difference from the CPU: 0 ") == 4
    assert text.count("LSTM") == 4
    lines = re.findall(r"^\|\s+(\d+) \|((?:\s+[\d,]+ \|){4})\s+(\d+)% \|\s+(\d+)% of the nodes", text, re.MULTILINE)
    assert [int(batch) for batch, *_ in lines] == [1, 3] * 4
    for _, rates, call, nodes in lines:
        assert all(float(rate.replace(",", "")) > 0 for rate in rates.split("|") if rate.strip())
        assert 0 < int(nodes) <= int(call) <= 100


def test_answers_that_differ_are_its_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that computes something else is found, and everything is printed all the same."""
    real = cuda.ResidentEngine.begin

    def wrong(self: cuda.ResidentEngine, rows: Sequence[bytes], chunks: Sequence[Chunk]) -> object:
        def finish() -> Run:
            done: Run = real(self, rows, chunks)()
            return Run({name: o + 0.25 for name, o in done.outputs.items()}, done.rows, done.finite, done.padding)

        return finish

    path = artifacts.running_sum(tmp_path / "sum" / "1" / "model.onnx")
    assert printed(capsys, monkeypatch, str(path), "--batches", "2")[0] == 0
    monkeypatch.setattr(cuda.ResidentEngine, "begin", wrong)
    status, text = printed(capsys, monkeypatch, str(path), "--batches", "2")
    assert status == 1
    assert "sum/1, float32" in text
    assert "largest difference from the CPU: 0.25 (allowed: 1e-05)" in text


def test_where_there_is_no_cuda_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured on the CPU unless it is asked for."""
    monkeypatch.setattr(ort, "available_providers", lambda: [providers.CPU])
    monkeypatch.setattr("sys.argv", ["cuda", "--batches", "1"])
    with pytest.raises(SystemExit, match="provider=cuda cannot be used"):
        cuda.main()


EVENTS = [
    {"cat": "Session", "name": "model_run", "ts": 0, "dur": 900},  # before what is measured
    {"cat": "Node", "name": "first_kernel_time", "ts": 10, "dur": 800},
    {"cat": "Session", "name": "model_run", "ts": 1000, "dur": 600},
    {"cat": "Session", "name": "SequentialExecutor::Execute", "ts": 1010, "dur": 590},
    {"cat": "Node", "name": "LSTM_kernel_time", "ts": 1100, "dur": 100},
    {"cat": "Node", "name": "LSTM_fence_before", "ts": 1100, "dur": 50},
    {"cat": "Session", "name": "model_run", "ts": 2000, "dur": 1000},
]


def test_shares_are_of_the_ticks_that_were_measured() -> None:
    """Warm-up and what is no node's kernel do not count; 4 ms of ticks held 1.6 ms of calls."""
    found = kernels.read(EVENTS, seconds=0.004, lasted_s=0.0025)
    assert found == kernels.Shares(0.4, 0.025, "of the nodes, on the host")


def test_the_gpus_own_times_count_where_there_are_any() -> None:
    """A node's time on the host is that of launching its kernels."""
    told = [{"cat": "Kernel", "name": "gemm", "ts": 1200 + 500 * n, "dur": 400} for n in range(2)]
    found = kernels.read(EVENTS + told, seconds=0.004, lasted_s=0.0025)
    assert found == kernels.Shares(0.4, 0.2, "on the device")
