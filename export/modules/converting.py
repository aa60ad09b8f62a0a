"""``export.from_torch``: a module of the user's own becomes an artifact.

Exported in one way after the other until an artifact answers like the module, adopted like any foreign file, proved
against the module, and only then published.
"""

import re
import sys
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
from export.adoption.axes import FIXED
from export.adoption.ports import shape_text
from export.adoption.wishes import ALL, NONE, Wishes
from export.artifact import fingerprint, publish, target_of
from export.errors import ExportError
from export.modules.axes import Axes, Axis, find_axes
from export.modules.calling import Call, Nested, at_rest, bind, next_of
from export.modules.exporting import Way, axes_for, export
from export.modules.proving import Parity, prove, usual_tolerance
from export.modules.repeating import check_repeats
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

    ``way`` is how it was exported, ``rejected`` tells for each way tried before why not. As a text: the shapes and axes
    of one line each, for a look at whether they are those that were meant.
    """

    path: Path
    fingerprint: str
    signature: Signature
    parity: Parity
    way: Way
    rejected: Mapping[Way, str]

    def __str__(self) -> str:
        said = self.signature
        sequences = [("input", spec) for spec in said.inputs] + [("output", spec) for spec in said.outputs]
        lines = [
            f"{kind} {spec.name}: {spec.dtype} {shape_text(spec.shape)}, one step is {list(spec.step_shape)}, "
            f"batch axis {spec.batch_axis}, time axis {spec.time_axis}"
            for kind, spec in sequences
        ]
        lines += [f"state {s.input}: {s.dtype} {shape_text(s.shape)}, batch axis {s.batch_axis}" for s in said.states]
        many = "any number of steps" if said.has_time_axis else "one step"
        rows = "" if said.batched else ", one row per call"
        return "\n".join([f"{self.path}: a request is {many}{rows}; exported by {self.way}", *lines])


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

    The module is called as ``forward(inputs..., states..., constants...)`` by name, in evaluation mode (as after
    ``module.eval()``: no dropout, running statistics) and without gradients, and is left as it was. It must be a
    function: all that it remembers from call to call is in ``states`` and is returned. It is exported in up to three
    ways, until one answers like the module: ``dynamo``, ``torchscript``, and ``decomposed``, which is dynamo with the
    recurrent layers taken apart and one step in a call.

    Args:
        module: Any nn.Module on the CPU whose ``forward`` takes its state and returns the next one.
        example_inputs: A tensor, a tuple of them, or a dict by parameter of ``forward``. Inputs to prove the artifact
            with are drawn after the example's values, so give some that are like the real ones.
        states: Example states by parameter of ``forward``, each a tensor or nested tuples of them, of as many rows as
            the inputs. Their values are where sessions begin.
        to: Where the artifact goes: ``model_repository/NAME/VERSION/``.
        outputs: Names for what ``forward`` returns, flattened and in order; a state there stands for its new value.
            Unless told, the last tensors returned are the states, in the order of ``states``.
        constants: Arguments of ``forward`` that always have one value; they become part of the graph.
        batch_axis: The axis that counts rows: of every input, or by name of inputs and states; None: the module takes
            one row at a time, as the example does then. Unless told ("auto"), it is found by running the module.
        time_axis: The axis of inputs that counts steps, likewise; None: one call, of the example's length, is one
            step. Unless told ("auto"), it is the first axis along which the module runs at any length, whole or in
            chunks, to the same answers; a module that cannot be cut so, or may have another time axis, is refused.
        exporter: "auto": the three ways, one after the other; "dynamo": without torchscript; "torchscript": only that.
        tolerance: The largest difference from the module that is allowed, in units of 1 or of the value where that is
            larger. Unless told, the square root of the coarsest float's resolution: 3e-4 for float32, 3e-2 for float16.
        force: Replace another artifact that stands there.

    Raises:
        ExportError: in one sentence what is wrong; nothing has been written then.
    """
    path = target_of(Path(to))
    if exporter not in _WAYS:
        raise ExportError(f"exporter is {exporter!r}, expected one of {', '.join(_WAYS)}")
    if tolerance is not None and not tolerance > 0:
        raise ExportError(f"tolerance is {tolerance}, expected a number above 0")
    with at_rest(module), Console(file=sys.stderr).status("running the module") as status:
        call = bind(module, example_inputs, states, outputs, constants or {})
        check_repeats(call)
        allowed = usual_tolerance(call) if tolerance is None else tolerance
        axes = find_axes(call, batch_axis, time_axis, allowed)
        initial = _initial(call, axes)
        rejected: dict[Way, str] = {}
        for way in _WAYS[exporter]:
            status.update(f"exporting and proving: {way}")
            try:
                content, signature, parity = _tried(call, axes, way, initial, allowed)
            except (ExportError, ServiceError) as error:
                rejected[way] = _in_python(str(error))
                continue
            try:
                publish(content, path, lambda _: None, force=force)
            except ExportError as error:
                raise ExportError(_in_python(str(error))) from error
            return Converted(path, fingerprint(content), signature, parity, way, rejected)
    raise ExportError(f"{type(module).__name__} cannot be exported ({_reasons(rejected)})")


def _reasons(rejected: Mapping[Way, str]) -> str:
    """Each reason once, behind the ways that it holds for, whatever the figures in it."""
    ways: dict[str, list[Way]] = {}
    for way, reason in rejected.items():
        ways.setdefault(re.sub(r"\d[\d.e+-]*", "", reason), []).append(way)
    if len(ways) == 1 and len(rejected) > 1:
        return f"in {'both' if len(rejected) == 2 else 'all three'} ways: {next(iter(rejected.values()))}"
    return "; ".join(f"{', '.join(names)}: {rejected[names[0]]}" for names in ways.values())


_SPOKEN = {
    "--force": "force=True",
    "--unbatched": "batch_axis=None",
    "--batch-axis": "batch_axis=",
    "--time-axis": "time_axis=",
    "--state": "states=",
    "--initial": "states=",
    "--constant": "constants=",
}


def _in_python(sentence: str) -> str:
    """A sentence of the command line in the words of this function, which has no others of its options."""
    sentence = re.sub(rf"\({FIXED}[^)]*\)", f"({FIXED})", sentence)  # the way out was to come here
    return re.sub("|".join(_SPOKEN), lambda option: _SPOKEN[option[0]], sentence)


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
        lengths=NONE,
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
