"""From an artifact to one of fewer bits: convert, prove, measure, report, refuse or publish.

Owns the order, what is refused, and what the user is shown.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnx import ModelProto
from rich import box
from rich.console import Console
from rich.table import Table

from export.adoption.proving import prove
from export.adoption.recurrences import find_recurrences
from export.artifact import FILE, fingerprint, publish, target_of
from export.errors import ExportError
from export.quantization.converting import Converted, convert
from export.quantization.measuring import BATCH, ERROR_STEPS, Errors, errors, microseconds
from export.quantization.validation import loss, read_data
from export.report import say
from export.signature import attach
from service.artifact import Proof, Signature
from service.engine import ort
from service.engine.probe import probe
from service.engine.runtime import Engine, load_engine
from service.settings import load_settings

MADE = "quantised"  # the key under which an artifact tells how it was converted


@dataclass(frozen=True)
class Limits:
    """How much worse the new artifact may be."""

    loss_increase: float  # relative, where there is data
    error: float  # of outputs, in units, where there is none


@dataclass(frozen=True)
class Figures:
    """What was measured of both artifacts, the old one first."""

    bytes: tuple[int, int]
    microseconds: tuple[Mapping[int, float], Mapping[int, float]]
    errors: Errors
    losses: tuple[float, float] | None

    @property
    def faster(self) -> bool:
        """Whether steps of many sessions cost less than before."""
        before, after = self.microseconds
        return after[BATCH] < before[BATCH]

    @property
    def loss_increase(self) -> float | None:
        """The relative change of the loss; None without data."""
        if self.losses is None:
            return None
        before, after = self.losses
        if before == after:
            return 0.0
        return (after - before) / abs(before) if before else float("inf")


def quantise_file(
    path: Path, to: Path, kind: str, data: Path | None, limits: Limits, console: Console, *, force: bool = False
) -> None:
    """What `lstm-serve quantize` does; ExportError or ServiceError says in one sentence why nothing was written."""
    target, settings = target_of(to), load_settings(provider="cpu")
    before = load_engine(path, settings)
    if MADE in before.signature.made:
        raise ExportError(f"{path} is quantised already ({before.signature.made[MADE].get('type')})")
    sequences = read_data(data, before.signature) if data else None
    probe(before)
    model = ModelProto.FromString(path.read_bytes())
    converted = convert(model, before.signature, kind)
    with TemporaryDirectory() as folder, console.status("") as status:
        draft = Path(folder) / FILE
        draft.write_bytes(attach(converted.model, converted.signature))
        proof = prove(draft, settings, lambda what: status.update(f"proving: {what}"))
        after = load_engine(draft, settings)
        probe(after)
        status.update("measuring")
        losses = (loss(before, sequences), loss(after, sequences)) if sequences is not None else None
        sizes = path.stat().st_size, draft.stat().st_size
        found = Figures(sizes, microseconds(before, after), errors(before, after), losses)
    console.print(_table(found, kind, limits))
    for sentence in _remarks(converted, found, (before, after), proof, kind):
        say(console, sentence)
    if not force:
        _require(found, limits)
    signature = _described(converted, proof, found, before, kind)
    content = attach(converted.model, signature)
    publish(content, target, lambda partial: probe(load_engine(partial, settings)), force=force)
    say(console, f"wrote {target} ({len(content) / 1e6:.2f} MB, fingerprint {fingerprint(content)[:12]})")


def _require(found: Figures, limits: Limits) -> None:
    """ExportError where too much was lost; written so that NaN fails, too."""
    increase = found.loss_increase
    if increase is not None and not increase <= limits.loss_increase:
        raise ExportError(
            f"too much is lost: the loss on the data rises by {increase:.2%} where --max-loss-increase allows "
            f"{limits.loss_increase:.2%}; --force writes the artifact all the same"
        )
    if increase is None and not found.errors.outputs <= limits.error:
        raise ExportError(
            f"too much is lost: outputs differ by up to {found.errors.outputs:.1e} where --max-error allows "
            f"{limits.error:.1e}; judge by --data, or --force to write the artifact all the same"
        )


def _described(converted: Converted, proof: Proof, found: Figures, before: Engine, kind: str) -> Signature:
    """The new signature: what it was made of, and how well. Times are the machine's, and stay out of the file."""
    made: dict[str, Any] = {
        "type": kind,
        "from": before.fingerprint,
        "operators": dict(sorted(converted.changed.items())),
        "largest_errors": asdict(found.errors),
        "versions": {"onnx": onnx.__version__, "onnxruntime": ort.VERSION},
    }
    if found.losses is not None:
        made["losses"] = dict(zip(("before", "after"), found.losses, strict=True))
    update = {"proof": proof, "made": {**before.signature.made, MADE: made}}
    return converted.signature.model_copy(update=update)


def _table(found: Figures, kind: str, limits: Limits) -> Table:
    """Both artifacts side by side."""
    title = (
        f"errors: over {ERROR_STEPS} random steps, in units (of a forecast its feature's scale, of others 1, or the "
    )
    title += "value itself where that is larger)"
    shown = Table("", "before", kind, "change", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in shown.columns[1:]:
        column.justify = "right"
    sizes = [f"{size / 1e6:.2f}" for size in found.bytes]
    shown.add_row("size, MB", *sizes, _times(*found.bytes))
    for rows, name in ((1, "alone"), (BATCH, f"in a batch of {BATCH}")):
        before, after = (times[rows] for times in found.microseconds)
        shown.add_row(f"CPU µs per step {name}", f"{before:.1f}", f"{after:.1f}", _times(before, after))
    for name, error in asdict(found.errors).items():
        judged = name == "outputs" and found.losses is None
        shown.add_row(f"largest error of {name}", "", f"{error:.1e}", f"{limits.error:.1e} allowed" if judged else "")
    if found.losses is not None:
        change = f"{found.loss_increase:+.2%}, {limits.loss_increase:+.2%} allowed"
        shown.add_row("loss on the data", *(f"{loss:.6g}" for loss in found.losses), change)
    return shown


def _times(before: float, after: float) -> str:
    return f"x {after / before:.2f}"


def _remarks(
    converted: Converted, found: Figures, engines: tuple[Engine, Engine], proof: Proof, kind: str
) -> list[str]:
    """What the figures do not say."""
    before, after = engines
    said = [f"converted: {_counted(converted.changed)}"]
    if kind == "int8":
        said += _staying(converted.model)
    if left := before.signature.recurrences[len(converted.signature.recurrences) :]:
        said.append(f"gates of {len(left)} recurrent operators can no longer be shown")
    if kind == "int8" and not found.faster:
        said.append("int8 is not faster for a model of this size: --type int8-weights is smaller and as fast as before")
    if before.bit_exact and not after.bit_exact:
        said.append("warning: answers are no longer bit-exact here: the service will neither cut nor fold chunks")
    if not proof.chunked:
        said.append("warning: a sequence cut into chunks is not answered as the whole")
    if kind == "float16":
        said.append("float16 is for CUDA: the CPU has no such recurrences, and computes them in float32 between casts")
    return said


def _staying(model: ModelProto) -> list[str]:
    """A sentence for each recurrent operator that int8 has left as it was."""
    usual = {recurrence.name for recurrence in find_recurrences(model, ())}
    said = []
    for node in model.graph.node:
        if node.op_type in ("RNN", "GRU"):
            said.append(f"{node.op_type} {node.name!r} stays as it is: ONNX Runtime has no int8 kernel for it")
        elif node.op_type == "LSTM":
            bounds = "nothing bounds its input, as an embedding or another layer before it would"
            reason = bounds if node.name in usual else "its form is unusual, or its weights are no constants"
            said.append(f"LSTM {node.name!r} stays as it is: {reason}")
    return said


def _counted(operators: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(operators.items()))
