"""From a checkpoint to an artifact in a model repository: freeze, attach the signature, pass the gate, publish."""

from pathlib import Path

from rich.console import Console

from export.artifact import fingerprint, publish, target_of
from export.graph import build
from export.network import freeze, made_by, reference_of
from export.report import say
from export.signature import attach, describe
from export.verifying import run_gate
from model.checkpoint import load
from service.engine.runtime import load_engine
from service.settings import load_settings


def export_checkpoint(folder: Path, to: Path, console: Console, *, force: bool = False) -> None:
    """What `lstm-serve export` does; ModelError or ExportError says in one sentence why nothing was written."""
    path = target_of(to)
    checkpoint = load(folder)
    weights = freeze(checkpoint.network)
    content = attach(build(weights), describe(weights, made_by(checkpoint)))

    def gate(partial: Path) -> None:
        # The CPU decides: other providers may round to fewer digits, which says nothing about the graph.
        engine = load_engine(partial, load_settings(provider="cpu"))
        run_gate(engine, reference_of(checkpoint.network), console)

    publish(content, path, gate, force=force)
    size = f"{len(content) / 1e6:.2f} MB"
    sentence = f"wrote {path} ({size}, fingerprint {fingerprint(content)[:12]})"
    say(console, sentence)
