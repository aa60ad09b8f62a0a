"""From a foreign ONNX model to an artifact: read, describe, prove, publish.

Owns the order, and what the user is shown on the way.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnx import ModelProto, ValueInfoProto, helper
from rich.console import Console

from export.adoption import tables
from export.adoption.describing import describe, one_step
from export.adoption.proving import prove
from export.adoption.reading import LARGEST, read_model
from export.adoption.wishes import Wishes
from export.artifact import FILE, fingerprint, publish, target_of
from export.errors import ExportError
from export.parity import uncalibrated
from export.report import NOT_EXACT, say
from export.signature import attach
from service.artifact import Proof, Shape, Signature
from service.engine import ort
from service.engine.placement import placement
from service.engine.runtime import load_engine
from service.settings import load_settings

_SIGNATURE = 2**20  # bytes that are left for the signature


def adopt_file(path: Path, to: Path, wishes: Wishes, console: Console, *, force: bool = False) -> Path:
    """What `lstm-serve adopt` does; ExportError or ServiceError says in one sentence why nothing was written."""
    target_of(to)  # named before long work
    model, sha256 = read_model(path)
    return adopt_model(model, to, wishes, console, force=force, made={"source": path.name, "sha256": sha256})


def adopt_model(
    model: ModelProto,
    to: Path,
    wishes: Wishes,
    console: Console,
    *,
    force: bool = False,
    made: Mapping[str, Any] | None = None,
) -> Path:
    """Turn a model, all its tensors inside, into an artifact in a version folder; returns the file.

    ``made`` tells where it comes from. The model itself is left as it is.

    Raises:
        ExportError, ServiceError: in one sentence, why nothing was written.
    """
    path = target_of(to)
    if model.ByteSize() > LARGEST - _SIGNATURE:
        raise ExportError("the model is too large: an ONNX file holds 2 GB at most")
    with console.status("looking for states and axes"):
        signature, warnings = describe(model, wishes, {**_origin(model), **(made or {})})
    console.print(tables.ports(signature))
    proof = _proof(model, signature, wishes, console)
    console.print(tables.proof(proof, uncalibrated(signature)))
    if not proof.chunked:
        warnings.append(
            f"answers depend on how clients cut their sequences (difference {tables.chunk_error(proof, '.2g')}): send "
            "each sequence in one request, or use predict"
        )
    content = _attached(model, signature.model_copy(update={"proof": proof}))
    settings = load_settings(provider=wishes.provider)
    if placed := placement(content, settings):
        console.print(tables.placement(placed))
    if proof.chunked and proof.bit_exact_from is None:
        say(console, NOT_EXACT)
    if said := one_step(signature, wishes):
        say(console, said)
    for sentence in warnings:
        say(console, f"warning: {sentence}")
    publish(content, path, lambda partial: _loads(partial, wishes), force=force)
    say(console, f"wrote {path} ({len(content) / 1e6:.2f} MB, fingerprint {fingerprint(content)[:12]})")
    return path


def _proof(model: ModelProto, signature: Signature, wishes: Wishes, console: Console) -> Proof:
    with TemporaryDirectory() as folder, console.status("") as status:
        path = Path(folder) / FILE
        path.write_bytes(_attached(model, signature))
        return prove(path, load_settings(provider=wishes.provider), lambda what: status.update(f"proving: {what}"))


def _attached(model: ModelProto, signature: Signature) -> bytes:
    """The artifact: the model as it is, but for shapes that it does not tell, or that its own outputs have broken."""
    copy = ModelProto()
    copy.CopyFrom(model)
    shapes = {t.name: t.shape for t in (*signature.inputs, *signature.outputs)}
    shapes |= {name: s.shape for s in signature.states for name in (s.input, s.output)}
    for value in (*copy.graph.input, *copy.graph.output):
        if _declared_wrongly(value, shapes.get(value.name, ())):
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, shapes[value.name]))
            del copy.graph.value_info[:]  # notes of the same exporter, which ONNX Runtime would believe
    return attach(copy, signature)


def _declared_wrongly(value: ValueInfoProto, shape: Shape) -> bool:
    declared = value.type.tensor_type.shape.dim
    if not declared:
        return bool(shape)
    return any(n is None and d.HasField("dim_value") for n, d in zip(shape, declared, strict=False))


def _loads(path: Path, wishes: Wishes) -> None:
    load_engine(path, load_settings(provider=wishes.provider))


def _origin(model: ModelProto) -> dict[str, Any]:
    opsets = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    return {
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": opsets,
        "versions": {"onnx": onnx.__version__, "onnxruntime": ort.VERSION},
    }
