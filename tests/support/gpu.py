"""Rows that stay on a device, without one.

``resident`` keeps them in arenas of the CPU. ``Gpu`` is a GPU made of the CPU: ONNX Runtime seems to run CUDA, and
every tensor that crosses the bus is written down.

What it cannot show is how a real one behaves: its kernels, its streams, and how long anything takes.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.engine import ort, providers
from service.engine.resident import Opened, ResidentEngine
from service.engine.runtime import Engine
from service.settings import load_settings

_REAL_SESSION, _REAL_VALUE = ort.InferenceSession, ort.OrtValue


def resident(engine: Engine, slots: int = 12) -> ResidentEngine:
    """The engine of the same artifact, with so many slots."""
    made = ResidentEngine(
        Opened.of(engine.path.read_bytes(), engine.signature, load_settings(provider="cpu")), engine, slots
    )
    made.min_rows, made.bit_exact = engine.min_rows, engine.bit_exact
    return made


class Gpu:
    """Device ``id``; ``sent`` and ``brought``: names and bytes of the tensors that went there and came from there."""

    def __init__(self, patch: pytest.MonkeyPatch, id: int = 0) -> None:
        self.id = id
        self.sent: list[tuple[str, int]] = []
        self.brought: list[tuple[str, int]] = []
        self.on_cpu: set[str] = set()  # operators that seem to be on the CPU
        self.forgets = False  # what was to be kept in its memory
        patch.setattr(ort, "available_providers", lambda: [providers.CUDA, providers.CPU])
        patch.setattr(ort, "InferenceSession", self.session)
        patch.setattr(ort, "OrtValue", self)

    def session(self, model: bytes, options: ort.SessionOptions, providers: Sequence[str]) -> Any:  # noqa: ANN401
        """As ``InferenceSession``: one that seems to run CUDA where it is asked for."""
        real = _REAL_SESSION(model, options, providers=["CPUExecutionProvider"])
        return _Session(self, real) if len(providers) > 1 else real

    def ortvalue_from_shape_and_type(self, shape: list[int], dtype: object, device: str, id: int) -> object:
        """As of ``OrtValue``: memory of this device and of no other."""
        assert (device, id) == ("cuda", self.id)
        value = _REAL_VALUE.ortvalue_from_shape_and_type(shape, dtype)
        raw = np.full(shape, 77, np.dtype(dtype))  # type: ignore[call-overload]  # nobody has written there
        value.update_inplace(raw)
        return value


class _Session:
    def __init__(self, gpu: Gpu, real: Any) -> None:  # noqa: ANN401
        self._gpu, self._real = gpu, real

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a session has
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        return [providers.CUDA, providers.CPU]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {providers.CUDA: {"device_id": str(self._gpu.id)}, providers.CPU: {}}

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(
                ep_name=providers.CPU if node.op_type in self._gpu.on_cpu else providers.CUDA,
                get_nodes=lambda node=node: [node],
            )
            for part in self._real.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]

    def io_binding(self) -> "_Binding":
        return _Binding(self._gpu, self._real.io_binding())

    def run_with_iobinding(self, binding: "_Binding") -> None:
        self._real.run_with_iobinding(binding.real)
        for value in binding.kept if self._gpu.forgets else ():
            value.update_inplace(np.zeros_like(value.numpy()))


class _Binding:
    def __init__(self, gpu: Gpu, real: Any) -> None:  # noqa: ANN401
        self._gpu, self.real = gpu, real
        self._names: list[str] = []
        self.kept: list[Any] = []

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self._gpu.sent.append((name, array.nbytes))
        self.real.bind_cpu_input(name, array.copy())

    def bind_ortvalue_input(self, name: str, value: object) -> None:
        self.real.bind_ortvalue_input(name, value)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:  # noqa: ANN401
        self._names.append(name)
        self.kept.append(value)
        self.real.bind_ortvalue_output(name, value)

    def bind_output(self, name: str, device: str, id: int) -> None:
        assert (device, id) == ("cuda", self._gpu.id)
        self._names.append(name)
        self.real.bind_output(name)

    def synchronize_inputs(self) -> None:
        self.real.synchronize_inputs()

    def synchronize_outputs(self) -> None:
        self.real.synchronize_outputs()

    def get_outputs(self) -> list["_Value"]:
        values = zip(self._names, self.real.get_outputs(), strict=True)
        return [_Value(self._gpu, name, value) for name, value in values]


class _Value:
    def __init__(self, gpu: Gpu, name: str, real: Any) -> None:  # noqa: ANN401
        self._gpu, self._name, self._real = gpu, name, real

    def numpy(self) -> np.ndarray:
        array: np.ndarray = self._real.numpy()
        self._gpu.brought.append((self._name, array.nbytes))
        return array
