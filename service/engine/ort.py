"""The one place that imports ONNX Runtime.

Its builds report usage to their maker unless they are told not to before they are loaded: a server that calls home
unasked, and cannot end while it tries to, is not ours. Whoever sets the variable themselves decides.
"""

import os
import re

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

InferenceSession = onnxruntime.InferenceSession
IOBinding = onnxruntime.IOBinding
NodeArg = onnxruntime.NodeArg
OrtValue = onnxruntime.OrtValue
SessionOptions = onnxruntime.SessionOptions
available_providers = onnxruntime.get_available_providers
VERSION: str = onnxruntime.__version__
BUILD: str = onnxruntime.get_build_info()

# Every error of ONNX Runtime derives from Exception directly; its own module is the only list of them.
ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(e for e in vars(onnxruntime_pybind11_state).values() if isinstance(e, type) and issubclass(e, Exception)),
)


# What its sentences begin with: a number and its name, and the place in its own source, with the function's signature
# (such as "reshape_helper.h:47 onnxruntime::ReshapeHelper::ReshapeHelper(const TensorShape&, bool)") or bare name.
_KIND = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_PLACE = re.compile(
    r"[\w./\\-]+\.(?:h|hpp|cc|cpp|cu|cuh):\d+ "
    r"(?:\w[\w:<>,&*~ ]*::[^\s()]+\((?:[^()]|\([^()]*\))*\)(?: const)?(?: \[with [^\]]*\])?|\w+) "
)


def first_line(error: Exception) -> str:
    """What ONNX Runtime says of an error, without its traces and the places in its source."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _PLACE.sub("", _KIND.sub("", said))
