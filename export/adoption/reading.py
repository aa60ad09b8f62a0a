"""From a file to an ONNX model in memory, external data included.

Owns what a foreign file may do to us: nothing is read that is too large, and nothing outside the file's own folder.
"""

import hashlib
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from export.errors import ExportError
from service.artifact import SIGNATURE_KEY

LARGEST = 2**31 - 1  # bytes of a protobuf message, and so of an artifact
_DIGITS, _SHOWN = 18, 80  # of a number in a file, and characters of its texts in a sentence


def read_model(path: Path) -> tuple[ModelProto, str]:
    """The model with all its tensors inside, and the sha256 of the file; ExportError says what is wrong with it."""
    content = _content(path)
    try:
        model = ModelProto.FromString(content)
    except Exception as error:  # protobuf's own, whatever it meets in the bytes
        raise ExportError(f"{path} is not an ONNX model, or is cut off") from error
    if not model.graph.node or not model.opset_import:
        raise ExportError(f"{path} is not an ONNX model: it holds no graph with operators")
    if not all(isinstance(text, str) for text in _texts(model)):
        raise ExportError(f"{path} is damaged: it holds a name that is not UTF-8")
    if any(entry.key == SIGNATURE_KEY for entry in model.metadata_props):
        raise ExportError(f"{path} carries a signature of lstm-serve already: copy it into the repository as it is")
    _embed(model, path, len(content))
    return model, hashlib.sha256(content).hexdigest()


def _content(path: Path) -> bytes:
    try:
        about = path.stat()
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            raise ExportError(f"{path} cannot be read: it is no file")  # a pipe would be waited for without end
        if about.st_size > LARGEST:
            raise ExportError(_too_large(path, about.st_size))
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error


def _embed(model: ModelProto, path: Path, size: int) -> None:
    """Move external data into the model; sizes are added up before anything is read."""
    parts = [(tensor, *_part(tensor, path)) for tensor in tensors(model) if tensor.data_location == tensor.EXTERNAL]
    total = size + sum(length for _, _, _, length in parts)
    if total > LARGEST:
        raise ExportError(_too_large(path, total))
    for tensor, source, offset, length in parts:
        try:
            with source.open("rb") as file:
                file.seek(offset)
                tensor.raw_data = file.read(length)
        except OSError as error:
            raise ExportError(f"external data of {tensor.name!r} cannot be read: {error.strerror}") from error
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def _part(tensor: TensorProto, path: Path) -> tuple[Path, int, int]:
    """The file, offset and length of a tensor's data; ExportError where they point anywhere that they must not."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    name, location = tensor.name, where.get("location", "")
    folder = path.parent.resolve()
    try:
        source = (folder / location).resolve()  # follows links, so that none leads out
        inside = bool(location) and not Path(location).is_absolute() and source.is_relative_to(folder)
        size = source.stat().st_size if inside and source.is_file() else None
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a zero byte, links in a circle
        raise ExportError(f"external data of {name!r} has a location that is no path: {_short(location)}") from error
    if not inside:
        raise ExportError(f"external data of {name!r} points outside the folder of {path}: {_short(location)}")
    if size is None:
        raise ExportError(f"external data of {name!r} is missing: {_short(location)} is no file beside {path}")
    expected = _bytes_of(tensor)
    offset, length = (
        _number(tensor, where.get(key), ordinary) for key, ordinary in (("offset", 0), ("length", expected))
    )
    if length != expected:
        raise ExportError(f"external data of {name!r} has a length of {length} bytes where its shape needs {expected}")
    if offset + length > size:
        raise ExportError(f"external data of {name!r} lies beyond the end of {location!r}: bytes {offset} + {length}")
    return source, offset, length


def _bytes_of(tensor: TensorProto) -> int:
    count = int(np.prod([max(n, 0) for n in tensor.dims], dtype=object))
    try:
        kind = TensorProto.DataType.Name(tensor.data_type)
        bits = (
            4
            if kind.endswith("INT4") or kind == "FLOAT4E2M1"
            else helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ExportError(f"external data of {tensor.name!r} is of a type that is not supported") from error
    return (count * bits + 7) // 8


def _number(tensor: TensorProto, text: str | None, ordinary: int) -> int:
    if text is None:
        return ordinary
    if not (text.isascii() and text.isdecimal()) or len(text) > _DIGITS:
        raise ExportError(f"external data of {tensor.name!r} has an offset or length that is no number: {_short(text)}")
    return int(text)


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of the model, in subgraphs and functions, too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graph_tensors(graph)


def _texts(message: Any) -> Iterator[object]:  # noqa: ANN401 - any message of protobuf, which carries no types
    """Every text in a message and in those inside it; protobuf leaves as bytes what is not UTF-8."""
    for field, value in message.ListFields():
        values = [value] if isinstance(value, str | bytes) or hasattr(value, "ListFields") else value
        if field.type == field.TYPE_STRING:
            yield from values
        elif field.type == field.TYPE_MESSAGE:
            for inner in values:
                yield from _texts(inner)


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ...")


def _too_large(path: Path, size: int) -> str:
    return f"{path} is too large: {size / 1e9:.1f} GB with its external data where a model file holds 2 GB at most"
