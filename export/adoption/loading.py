"""Whether ONNX Runtime survives a foreign model.

Seen with ONNX Runtime 1.31: graphs with float16 in them (a GRU, a transposition and a product of matrices) make its
optimiser for the CPU end the whole process. Such a model is loaded by a process of its own first.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from onnx import ModelProto, TensorProto, helper

from export.adoption.reading import tensors
from export.errors import ExportError

_LOAD = """
import sys
from service.engine.providers import open_session
from service.settings import load_settings
open_session(sys.argv[1], load_settings(provider=sys.argv[2]))
"""
_PATIENCE = 600  # seconds


def check_survives(model: ModelProto, content: bytes, provider: str) -> None:
    """ExportError where loading the model ends the process; what else is wrong with it is told when it is loaded."""
    if TensorProto.FLOAT16 not in _types(model):
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(  # noqa: S603 - this very interpreter, and a path of our own
            [sys.executable, "-c", _LOAD, str(path), provider],
            check=False,
            capture_output=True,
            timeout=_PATIENCE,
            env=environment,
        )
    if done.returncode < 0:
        raise ExportError(
            f"ONNX Runtime itself breaks down while it loads the model ({signal.Signals(-done.returncode).name}), as "
            "it does for some graphs of float16 on the CPU: export the model in float32"
        )


def _types(model: ModelProto) -> Iterator[int]:
    """The types of what goes in, comes out and is held; a cast to another type tells it as an attribute."""
    yield from (value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output))
    yield from (tensor.data_type for tensor in tensors(model))
    for node in model.graph.node:
        if node.op_type == "Cast":
            yield from (helper.get_attribute_value(a) for a in node.attribute if a.name == "to")
