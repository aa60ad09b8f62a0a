"""ONNX files as bytes: what the engine adds to a graph, and takes from it, without the package ``onnx``.

Owns the little of protobuf's wire format that this takes (protobuf.dev/programming-guides/encoding). Messages that
stand one behind the other are merged and lists joined ("Last One Wins"), so the file itself need not be understood: its
weights are never looked at. The numbers of fields are those of onnx.proto.
"""

from collections.abc import Collection, Iterator, Sequence

from service.artifact import DType

_GRAPH = 7  # of ModelProto
_NODE, _INPUT, _OUTPUT = 1, 11, 12  # of GraphProto
_NAME = 1  # of ValueInfoProto
_INT, _INTS = 2, 7  # types of an AttributeProto
_TYPES: dict[DType, int] = {"float32": 1, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def graph(nodes: Sequence[bytes] = (), inputs: Sequence[bytes] = (), outputs: Sequence[str] = ()) -> bytes:
    """Parts of a model's graph, as a model to be joined with others: before it, or behind it."""
    named = [
        _field(_OUTPUT, _field(_NAME, name.encode())) for name in outputs
    ]  # their types are ONNX Runtime's to find
    parts = [_field(_NODE, node) for node in nodes] + [_field(_INPUT, value) for value in inputs] + named
    return _field(_GRAPH, b"".join(parts))


def model(opset: int, ir_version: int) -> bytes:
    """What makes graph parts a model."""
    return _number(1, ir_version) + _field(8, _field(1, b"") + _number(2, opset))


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | Sequence[int]) -> bytes:
    """A node, named after its first output."""
    return b"".join(
        (
            *(_field(1, name.encode()) for name in inputs),
            *(_field(2, name.encode()) for name in outputs),
            _field(3, outputs[0].encode()),
            _field(4, operator.encode()),
            *(_field(5, _attribute(name, value)) for name, value in attributes.items()),
        )
    )


def constant(name: str, values: Sequence[int]) -> bytes:
    """A node that is a list of whole numbers."""
    return node("Constant", [], [name], value_ints=values)


def tensor(name: str, dtype: DType, shape: Sequence[int | str]) -> bytes:
    """A graph's input; an axis with a name has any length."""
    axes = [_number(1, axis) if isinstance(axis, int) else _field(2, axis.encode()) for axis in shape]
    kind = _number(1, _TYPES[dtype]) + _field(2, b"".join(_field(1, axis) for axis in axes))
    return _field(_NAME, name.encode()) + _field(2, _field(1, kind))


def without_inputs(content: bytes, names: Collection[str]) -> bytes:
    """The model whose graph no longer takes these inputs: something else in it has to make those tensors."""
    unwanted = {name.encode() for name in names}
    return b"".join(
        _field(_GRAPH, b"".join(kept for number, part, kept in _fields(held) if not _names(number, part, unwanted)))
        if of_model == _GRAPH
        else whole
        for of_model, held, whole in _fields(content)
    )


def opset(content: bytes) -> int:
    """The version of ONNX's own operators that a model uses; 0 where it does not say."""
    for number, held, _ in _fields(content):
        entries = {field: part for field, part, _ in _fields(held)} if number == 8 else {}
        if entries and not entries.get(1):
            return _read_varint(entries[2], 0)[0]
    return 0


def _names(number: int, part: bytes, names: Collection[bytes]) -> bool:
    return number == _INPUT and any(field == _NAME and name in names for field, name, _ in _fields(part))


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """The fields of a message: the number, the content, and the whole field as it stands."""
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        content = at
        if key & 7 == _VARINT:
            _, at = _read_varint(message, at)
        elif key & 7 == _BYTES:
            length, content = _read_varint(message, at)
            at = content + length
        else:
            at += {_FIXED64: 8, _FIXED32: 4}[key & 7]
        yield key >> 3, message[content:at], message[start:at]


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return _field(1, name.encode()) + _number(3, value) + _number(20, _INT)
    return _field(1, name.encode()) + b"".join(_number(8, each) for each in value) + _number(20, _INTS)


def _field(number: int, content: bytes) -> bytes:
    """One field that carries bytes."""
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    """One field that carries a whole number; negative ones as 64 bits."""
    return _varint(number << 3 | _VARINT) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)


def _varint(value: int) -> bytes:
    """Seven bits at a time, the lowest first; the eighth says that more follow."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])
