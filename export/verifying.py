"""The gate on a file: load it as the service does, run every comparison, print what was found, pass or raise.

Must not import torch or onnx before a checkpoint is named: a server has neither.
"""

from pathlib import Path

from rich.console import Console

from export import report
from export.errors import ExportError
from export.parity import Reference, Report, check
from service.engine import ort
from service.engine.probe import probe
from service.engine.runtime import Engine, load_engine
from service.settings import load_settings


def verify_artifact(path: Path, checkpoint: Path | None, provider: str, console: Console) -> None:
    """What `lstm-serve verify` does; ArtifactError or ExportError says in one sentence why a file fails."""
    engine = load_engine(path, load_settings(provider=provider))
    reference = _reference(engine, path, checkpoint) if checkpoint else None
    run_gate(engine, reference, console)
    report.say(console, f"{path} passes")


def run_gate(engine: Engine, reference: Reference | None, console: Console) -> Report:
    """Probe and compare, print the table, and raise ExportError when a comparison fails."""
    report.say(console, report.heading(engine.signature))
    probe(engine)
    try:
        found = check(engine, reference)
    except ort.ERRORS as error:  # the probe's batches ran, a longer or larger one did not
        raise ExportError(f"the artifact loads, but does not run: {ort.first_line(error)}") from error
    console.print(report.table(found))
    report.say(console, report.bits(found))
    found.require()
    return found


def _reference(engine: Engine, path: Path, checkpoint: Path) -> Reference:
    """The checkpoint's network, if the artifact can have been made from one like it."""
    from export.network import freeze, reference_of  # needs torch
    from export.signature import describe  # needs onnx
    from model.checkpoint import load

    network = load(checkpoint).network
    expected = describe(freeze(network))
    for part in ("task", "cell", "vocabulary", "features", "inputs", "outputs", "states", "lengths"):
        if getattr(engine.signature, part) != getattr(expected, part):
            raise ExportError(f"{path} was not made from {checkpoint}: they differ in: {part}")
    return reference_of(network)
