"""The command line as a whole: every command is there, and every error is one sentence with its exit status."""

import sys
from importlib.metadata import version

import pytest

import lstm_serve
from bench.errors import BenchError
from export.errors import ExportError
from model.errors import Interrupted, ModelError
from service.errors import ServiceError


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lstm-serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        lstm_serve.main()
    return int(ended.value.code or 0)


def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The help lists what can be done."""
    assert _run(monkeypatch, "--help") == 0
    told = capsys.readouterr().out
    for command in ("train", "study", "export", "adopt", "quantize", "verify", "serve", "models", "sessions", "bench"):
        assert f"\n  {command} " in told


def test_the_version_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reports a fault can say of which version."""
    assert _run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"lstm-serve {version('lstm-serve')}\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ServiceError("the store is gone"), 2),
        (ExportError("the gate failed"), 2),
        (ModelError("row 3 is empty"), 2),
        (BenchError("nobody listens"), 2),
        (Interrupted("stopped; go on with --resume"), 130),
    ],
)
def test_errors_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, status: int
) -> None:
    """What the user can mend is one sentence on standard error, and the status tells it from success."""

    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(lstm_serve, "app", failing)
    assert _run(monkeypatch) == status
    assert capsys.readouterr().err == f"lstm-serve: {error}\n"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the extra `train` is missing, the sentence says how to get it; other missing modules are our fault."""

    def missing(package: str) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(lstm_serve, "app", lambda: missing("onnx"))
    assert _run(monkeypatch) == 2
    assert "pip install 'lstm-serve[train]'" in capsys.readouterr().err
    monkeypatch.setattr(lstm_serve, "app", lambda: missing("typo"))
    with pytest.raises(ModuleNotFoundError):
        lstm_serve.main()


@pytest.mark.parametrize("arguments", [["serve", "--nope"], ["nope"], ["train", "language", "--hidden", "x"]])
def test_wrong_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """A wrong option or command is told without a stack of calls."""
    assert _run(monkeypatch, *arguments) == 2
    told = capsys.readouterr().err
    assert "Error: " in told
    assert "Traceback" not in told
