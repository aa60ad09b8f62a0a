"""``export.from_torch``: a module of the user's own becomes an artifact.

Exported in one way after the other until an artifact answers like the module, adopted like any foreign file, proved
against the module, and only then published.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from torch import nn

from export.adoption.adopting import adopt_model
from export.adoption.wishes import ALL, Wishes
from export.artifact import fingerprint, publish, target_of
from export.errors import ExportError
from export.modules.axes import Axes, Axis, find_axes
from export.modules.calling import Call, Nested, at_rest, bind, next_of
from export.modules.exporting import Way, axes_for, export
from export.modules.proving import Parity, prove, usual_tolerance
from service.artifact import Signature
from service.engine import ort
from service.engine.probe import probe
from service.engine.runtime import load_engine
from service.errors import ServiceError
from service.settings import load_settings

Exporter = Literal["auto", "dynamo", "torchscript"]

_WAYS: dict[Exporter, tuple[Way, ...]] = {
    "auto": ("dynamo", "torchscript", "decomposed"),
    "dynamo": ("dynamo", "decomposed"),
    "torchscript": ("torchscript",),
}


@dataclass(frozen=True)
class Converted:
    """An artifact made of a module: the file, what it says of itself, and how closely it agrees with the module.

    ``way`` is how it was exported, ``rejected`` tells for each way tried before why not.
    """

    path: Path
    fingerprint: str
    signature: Signature
    parity: Parity
    way: Way
    rejected: Mapping[Way, str]


def from_torch(
    module: nn.Module,
    example_inputs: Nested,
    states: Mapping[str, Nested],
    *,
    to: str | Path,
    outputs: Sequence[str] | None = None,
    constants: Mapping[str, Any] | None = None,
    batch_axis: Axis = "auto",
    time_axis: Axis = "auto",
    exporter: Exporter = "auto",
    tolerance: float | None = None,
    force: bool = False,
) -> Converted:
    """Export a stateful module, adopt the graph, prove it against the module, and publish it.

    The module is called as ``forward(inputs..., states..., constants...)`` by name, in evaluation mode and without
    gradients, and is left as it was.

    Args:
        module: Any nn.Module on the CPU whose ``forward`` takes its state and returns the next one.
        example_inputs: A tensor, a tuple of them, or a dict by parameter of ``forward``. Inputs to prove the artifact
            with are drawn after the example's values, so give some that are like the real ones.
        states: Example states by parameter of ``forward``, each a tensor or nested tuples of them. Their values are
            where sessions begin.
        to: Where the artifact goes: ``model_repository/NAME/VERSION/``.
        outputs: Names for what ``forward`` returns, flattened and in order; a state there stands for its new value.
            Unless told, the last tensors returned are the states, in the order of ``states``.
        constants: Arguments of ``forward`` that always have one value; they become part of the graph.
        batch_axis: The axis that counts rows: of every input, or by name of inputs and states; None: the module takes
            one row at a time. Unless told, it is found by running the module.
        time_axis: The axis of inputs that counts steps, likewise; None: one call is one step. Unless told, it is the
            first axis along which the module runs at any length, whole or in chunks, to the same answers.
        exporter: Of torch.onnx.export; unless told, ``dynamo`` first, and the other where the first is wrong.
        tolerance: The largest difference from the module that is allowed, in units of 1 or of the value where that is
            larger; see ``usual_tolerance``.
        force: Replace another artifact that stands there.

    Raises:
        ExportError: in one sentence what is wrong; nothing has been written then.
    """
    path = target_of(Path(to))
    if exporter not in _WAYS:
        raise ExportError(f"exporter is {exporter!r}, expected one of {', '.join(_WAYS)}")
    if tolerance is not None and not tolerance > 0:
        raise ExportError(f"tolerance is {tolerance}, expected a number above 0")
    with at_rest(module):
        call = bind(module, example_inputs, states, outputs, constants or {})
        allowed = usual_tolerance(call) if tolerance is None else tolerance
        axes = find_axes(call, batch_axis, time_axis, allowed)
        initial = _initial(call, axes)
        rejected: dict[Way, str] = {}
        for way in _WAYS[exporter]:
            try:
                content, signature, parity = _tried(call, axes, way, initial, allowed)
            except (ExportError, ServiceError) as error:
                rejected[way] = str(error)
                continue
            publish(content, path, lambda _: None, force=force)
            return Converted(path, fingerprint(content), signature, parity, way, rejected)
    reasons = "; ".join(f"{way}: {reason}" for way, reason in rejected.items())
    raise ExportError(f"{type(module).__name__} cannot be exported ({reasons})")


def _tried(
    call: Call, axes: Axes, way: Way, initial: Mapping[str, np.ndarray | None], tolerance: float
) -> tuple[bytes, Signature, Parity]:
    """The artifact of one way, adopted and proved where nobody sees it."""
    have = axes_for(way, axes)
    model = export(call, have, way)
    with tempfile.TemporaryDirectory() as folder:
        path = adopt_model(
            model, Path(folder, "module", "1"), _wishes(call, have, initial), Console(quiet=True), made=_made(call, way)
        )
        engine = load_engine(path, load_settings(provider="cpu"))
        probe(engine)
        try:
            parity = prove(engine, call, axes, tolerance)
        except ort.ERRORS as error:  # adoption's runs went well, a longer or larger one did not
            raise ExportError(f"the graph loads, but does not run: {ort.first_line(error)}") from error
        return path.read_bytes(), engine.signature, parity


def _wishes(call: Call, axes: Axes, initial: Mapping[str, np.ndarray | None]) -> Wishes:
    batch = {next_of(name) if name in call.carried else name: axes.batch[name] for name in call.returned}
    return Wishes(
        states=tuple((name, next_of(name)) for name in call.carried),
        batch_axes={ALL: None} if _unbatched(call, axes) else {**batch, **axes.batch},
        time_axes=axes.time,
        initial=initial,
        unbatched=_unbatched(call, axes),
    )


def _unbatched(call: Call, axes: Axes) -> bool:
    return all(axes.batch[name] is None for name in call.carried)


def _initial(call: Call, axes: Axes) -> dict[str, np.ndarray | None]:
    """The first state of one row, by name, its batch axis of length 1; None for zeros."""
    found: dict[str, np.ndarray | None] = {}
    for name, tensor in call.carried.items():
        batch = axes.batch[name]
        row = tensor if batch is None else tensor.narrow(batch, 0, 1)
        if not (tensor == row).all():
            raise ExportError(f"the rows of state {name!r} differ: give one initial value for all, such as zeros")
        found[name] = row.numpy() if row.any() else None
    return found


def _made(call: Call, way: Way) -> dict[str, Any]:
    """Where the artifact comes from; nothing of the time or the machine."""
    versions = {package: version(package) for package in ("onnx", "onnxruntime", "onnxscript", "torch")}
    return {"module": type(call.module).__qualname__, "exporter": way, "versions": versions}
