"""The one place that imports ONNX Runtime.

Its builds report usage to their maker unless they are told not to before they are loaded: a server that calls home
unasked, and cannot end while it tries to, is not ours. Whoever sets the variable themselves decides.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

InferenceSession = onnxruntime.InferenceSession
NodeArg = onnxruntime.NodeArg
SessionOptions = onnxruntime.SessionOptions
available_providers = onnxruntime.get_available_providers
VERSION: str = onnxruntime.__version__

# Every error of ONNX Runtime derives from Exception directly; its own module is the only list of them.
ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(e for e in vars(onnxruntime_pybind11_state).values() if isinstance(e, type) and issubclass(e, Exception)),
)


def first_line(error: Exception) -> str:
    """What ONNX Runtime says of an error, without its traces."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
