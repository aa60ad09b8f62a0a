"""The server as the comparison of model servers starts it: a given ONNX model, SQLite commits on, a fresh data folder.

The model has inputs ``tokens`` int64 [batch, time], ``h0`` and ``c0`` float32 [2, batch, 128], and outputs ``logits``
[batch, time, 96], ``hn``, ``cn``. It becomes an artifact by a signature and, since a language artifact answers
log-probabilities, a LogSoftmax behind its logits.
"""

import bench.extra  # isort: skip  # noqa: F401 - before what it looks for
import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, helper

from bench import untrained
from service.artifact import SIGNATURE_KEY, Signature, StateSpec, TensorSpec

NAMES = ["ours", "ours_procs"]
HTTP_WORKERS = {"ours": 0, "ours_procs": 1}  # of two cores the load generator needs its part
CREATE = ("/v1/sessions\nContent-Type: application/json\n", '{"model": "yardstick"}')
CAPTURE = "Location"
STEP = ("{HDR}/steps\nContent-Type: application/json\n", '{"inputs": [{TOK}], "top_k": 1}')
SYMBOLS, LAYERS, HIDDEN = 96, 2, 128


def command(port: int, onnx_path: str, name: str) -> list[str]:
    """The command that serves the model on this port, in the foreground."""
    folder = Path(tempfile.gettempdir()) / f"lstm-serve-yardstick-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    adopt(Path(onnx_path), folder / "models" / "yardstick" / "1" / "model.onnx")
    server = Path(sys.executable).with_name("lstm-serve")
    return [
        *(str(server), "serve", "--port", str(port), "--log-level", "warning"),
        *("--http-workers", str(HTTP_WORKERS[name])),
        *("--model-repository", str(folder / "models"), "--store", f"sqlite:{folder}/data/sessions.db"),
    ]


def adopt(source: Path, target: Path) -> None:
    """Write the model as an artifact; a sentence and the end where it is another model."""
    model = _read(source)
    model.graph.node.append(helper.make_node("LogSoftmax", ["logits"], ["logprobs"], axis=-1))
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, ["batch", "seq", SYMBOLS])
    )
    shape = (LAYERS, None, HIDDEN)
    states = [
        StateSpec(input=name, output=after, dtype="float32", shape=shape, batch_axis=1)
        for name, after in (("h0", "hn"), ("c0", "cn"))
    ]
    signature = Signature(
        task="language",
        cell="lstm",
        inputs=(TensorSpec(name="tokens", dtype="int64", shape=(None, None)),),
        outputs=(TensorSpec(name="logprobs", dtype="float32", shape=(None, None, SYMBOLS)),),
        states=tuple(states),
        vocabulary=tuple(chr(32 + i) for i in range(SYMBOLS)),
    )
    helper.set_model_props(model, {SIGNATURE_KEY: signature.model_dump_json()})
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, target)


def onnx_file(text: str) -> Path:
    """The value of ``--onnx``: a file."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return Path(text)


def _read(source: Path) -> ModelProto:
    try:
        model = onnx.load(source)
    except Exception as error:  # noqa: BLE001 - protobuf's own, whatever it meets in the bytes
        sys.exit(f"{source} cannot be read as an ONNX file ({type(error).__name__})")
    taken, told = ({value.name for value in values} for values in (model.graph.input, model.graph.output))
    if not ({"tokens", "h0", "c0"} <= taken and {"logits", "hn", "cn"} <= told):
        sys.exit(f"{source} is not the model of the comparison, which takes tokens, h0, c0 and tells logits, hn, cn")
    return model


def repository(onnx_path: Path | None, folder: Path) -> tuple[Path, str]:
    """A model repository in the folder with the model, and its name there; without one, an untrained one as large."""
    models = folder / "models"
    path = models / "yardstick" / "1" / "model.onnx"
    if onnx_path is None:
        untrained.write(path, LAYERS, HIDDEN)
    else:
        adopt(onnx_path, path)
    return models, "yardstick"


def read(headers: dict[str, str], body: bytes) -> tuple[int, float]:
    """A step's answer as (most likely token, its log-probability)."""
    outputs = json.loads(body)["outputs"]
    return outputs["tokens"][0], outputs["logprobs"][0]
