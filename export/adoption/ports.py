"""The inputs and outputs of a foreign graph: names, types and what is known of their shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from onnx import ModelProto, TensorProto, ValueInfoProto, shape_inference

from export.adoption.wishes import Wishes
from export.errors import ExportError
from service.artifact import DType

Dim = int | str | None  # a fixed length, the name of an open one, or an open one without a name

_DTYPES: dict[int, DType] = {
    TensorProto.FLOAT16: "float16",
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}


@dataclass(frozen=True)
class Port:
    """An input or output of the graph; ``shape`` None: not even the number of axes is known."""

    name: str
    dtype: DType
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype} {shape_text(self.shape)}"

    @property
    def open(self) -> list[int]:
        """The axes whose length the graph leaves open."""
        return [axis for axis, n in enumerate(self.shape or ()) if not isinstance(n, int)]


@dataclass(frozen=True)
class Ports:
    """What the graph takes, without what it holds itself, and what it answers."""

    inputs: dict[str, Port]
    outputs: dict[str, Port]


def shape_text(shape: Sequence[Dim] | None) -> str:
    """A shape for people: ``[1, ?, 64]``."""
    if shape is None:
        return "[...]"
    return "[" + ", ".join("?" if n is None else str(n) for n in shape) + "]"


def ports_of(model: ModelProto, wishes: Wishes) -> Ports:
    """The graph's ports, shapes inferred where it does not tell them, and as the user tells them.

    Raises:
        ExportError: a port that is no tensor or of a type that states and inputs cannot have.
    """
    graph = _inferred(model).graph
    held = {tensor.name for tensor in model.graph.initializer}
    held |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    inputs = [_port(value, "input", wishes) for value in graph.input if value.name not in held]
    outputs = [_port(value, "output", wishes) for value in graph.output]
    found = Ports({p.name: p for p in inputs}, {p.name: p for p in outputs})
    for name in wishes.shapes:
        if name not in found.inputs and name not in found.outputs:
            raise ExportError(f"--shape names {name!r}, which is neither an input nor an output of the graph")
    return found


def _inferred(model: ModelProto) -> ModelProto:
    try:
        return shape_inference.infer_shapes(model)
    except Exception:  # noqa: BLE001 - it may fail on any operator that it does not know; runs tell the shapes then
        return model


def _port(value: ValueInfoProto, kind: str, wishes: Wishes) -> Port:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ExportError(f"{kind} {value.name!r} is not a tensor")
    if tensor.elem_type not in _DTYPES:
        names = {number: name.lower() for name, number in TensorProto.DataType.items()}
        name = names.get(tensor.elem_type, str(tensor.elem_type))
        raise ExportError(f"{kind} {value.name!r} is of type {name}, expected one of {', '.join(get_args(DType))}")
    dims = tensor.shape.dim
    shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or None for d in dims)
    known = shape if tensor.HasField("shape") else None
    if 0 in (known or ()):
        raise ExportError(f"{kind} {value.name!r} has an axis of length 0 ({shape_text(known)}): it holds nothing")
    return Port(value.name, _DTYPES[tensor.elem_type], _told(value.name, known, wishes))


def _told(name: str, shape: tuple[Dim, ...] | None, wishes: Wishes) -> tuple[Dim, ...] | None:
    """The shape with the user's lengths where the graph leaves them open."""
    wish = wishes.shapes.get(name)
    if wish is None:
        return shape
    if shape is None:
        return wish
    if len(wish) != len(shape) or any(
        isinstance(have, int) and n not in (None, have) for have, n in zip(shape, wish, strict=True)
    ):
        raise ExportError(f"--shape {name} does not fit the graph's own shape {shape_text(shape)}")
    return tuple(have if n is None else n for have, n in zip(shape, wish, strict=True))
