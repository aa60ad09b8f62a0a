"""What an artifact is: one ONNX file with its signature in the metadata.

Owns the signature's schema. Knows nothing of ONNX Runtime or of who wrote the file: ``export/`` imports this module
and writes what it says, ``engine/`` reads it and holds the graph against it.
"""

import base64
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import ArtifactError

SIGNATURE_KEY = "lstm_serve.signature"

Task = Literal["language", "forecast", "generic"]
DType = Literal["float16", "float32", "float64", "int32", "int64", "bool"]
# One entry per axis of the graph's tensor; None is an axis whose length varies from call to call.
Shape = tuple[Annotated[int, Field(ge=1)] | None, ...]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Tensor(_Part):
    """A constant tensor: ``data`` is base64 of its little-endian bytes in C order."""

    dtype: DType
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    data: str

    @classmethod
    def of(cls, array: np.ndarray) -> Self:
        """The document of an array."""
        little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        return cls.model_validate(
            {"dtype": array.dtype.name, "shape": array.shape, "data": base64.b64encode(little.tobytes()).decode()}
        )

    def array(self) -> np.ndarray:
        """The tensor as an array of ``shape``; ValueError when ``data`` has another size."""
        raw = np.frombuffer(base64.b64decode(self.data, validate=True), np.dtype(self.dtype).newbyteorder("<"))
        return raw.astype(self.dtype).reshape(self.shape)


class TensorSpec(_Part):
    """An input or output of the graph that carries a sequence; ``time_axis`` None: one request is one step."""

    name: str
    dtype: DType
    shape: Shape
    batch_axis: int = 0
    time_axis: int | None = 1

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _check_axis(self.name, "batch_axis", self.batch_axis, self.shape)
        if self.time_axis is not None:
            _check_axis(self.name, "time_axis", self.time_axis, self.shape)
        if self.time_axis == self.batch_axis:
            raise ValueError(f"batch_axis and time_axis of {self.name!r} are the same")
        return self

    @cached_property
    def step_shape(self) -> tuple[int, ...]:
        """The shape of one time step of one row: what is left without the batch and the time axis."""
        return tuple(n or 1 for i, n in enumerate(self.shape) if i not in (self.batch_axis, self.time_axis))


class StateSpec(_Part):
    """A tensor that is carried: what comes out as ``output`` goes in as ``input`` at the next step."""

    input: str
    output: str
    dtype: DType
    shape: Shape
    batch_axis: int
    initial: Tensor | None = Field(default=None, description="one row's first state; none means zeros")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _check_axis(self.input, "batch_axis", self.batch_axis, self.shape)
        return self

    @cached_property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row: the tensor's without the batch axis."""
        return tuple(n or 1 for i, n in enumerate(self.shape) if i != self.batch_axis)


def _check_axis(name: str, kind: str, axis: int, shape: Shape) -> None:
    """Rows and steps vary from tick to tick: their axes are there, and not of one length."""
    if not 0 <= axis < len(shape):
        raise ValueError(f"{kind} {axis} of {name!r} is none of its {len(shape)} axes")
    if shape[axis] is not None:
        raise ValueError(f"axis {axis} of {name!r} is its {kind} and has the fixed length {shape[axis]}")


class Scaling(_Part):
    """Mean and scale of each feature, in the user's units: what ordinary inputs look like.

    The graph scales by itself; this is for whoever has to make up inputs, such as the probe and the parity gate.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]


class Signature(_Part):
    """What an artifact says of itself.

    A ``language`` artifact takes token ids and its first output is log-probabilities over ``vocabulary``. A
    ``forecast`` artifact takes ``features`` and its first output predicts all of them one step ahead, in the same
    order and the same units, so that it can be fed back.
    """

    format: Literal[1] = 1
    task: Task
    cell: str | None = None
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    states: tuple[StateSpec, ...] = Field(min_length=1)
    lengths: str | None = Field(default=None, description="the int32 input with each row's number of steps")
    constants: dict[str, Tensor] = Field(default_factory=dict, description="inputs that always have one value")
    vocabulary: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    scaling: Scaling | None = None
    made: dict[str, Any] = Field(default_factory=dict, description="data, seed, steps, losses, versions")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        self._check_names()
        if self.has_time_axis and any(o.time_axis is None for o in self.outputs):
            raise ValueError("the inputs have a time axis and an output has none")
        if self.task == "language":
            self._check_language()
        elif self.vocabulary is not None:
            raise ValueError(f"a {self.task} model has no vocabulary")
        if self.task == "forecast":
            self._check_forecast()
        elif self.features is not None or self.scaling is not None:
            raise ValueError(f"a {self.task} model has neither features nor scaling")
        self._check_values()
        return self

    def _check_names(self) -> None:
        names = [i.name for i in self.inputs] + [s.input for s in self.states] + list(self.constants)
        names += [self.lengths] if self.lengths is not None else []
        if len(set(names)) < len(names):
            raise ValueError("an input is named twice")

    def _check_values(self) -> None:
        for state in self.states:
            if state.initial is not None and state.initial.array().shape != state.row_shape:
                raise ValueError(f"the initial value of state {state.input} is not of shape {state.row_shape}")
        for constant in self.constants.values():
            constant.array()  # a ValueError where its data has another size

    def _check_language(self) -> None:
        if not self.vocabulary or len(set(self.vocabulary)) < len(self.vocabulary):
            raise ValueError("a language model needs a vocabulary without doubles")
        if self.inputs[0].step_shape != () or not self.inputs[0].dtype.startswith("int"):
            raise ValueError("a language model takes one whole number (a token id) per step")
        if self.outputs[0].step_shape != (len(self.vocabulary),):
            raise ValueError("a language model answers one log-probability per symbol of its vocabulary")

    def _check_forecast(self) -> None:
        if not self.features:
            raise ValueError("a forecast model needs the names of its features")
        width = (len(self.features),)
        if self.scaling is not None and not len(self.scaling.mean) == len(self.scaling.scale) == width[0]:
            raise ValueError("scaling needs one mean and one scale per feature")
        if self.inputs[0].step_shape != width or self.outputs[0].step_shape != width:
            raise ValueError(f"a forecast model takes and answers its {len(self.features)} features at each step")

    @property
    def has_time_axis(self) -> bool:
        """Whether one call can run several steps."""
        return all(i.time_axis is not None for i in self.inputs)


def parse_signature(document: str) -> Signature:
    """The signature in an artifact's metadata; ArtifactError names the first thing that is wrong in it."""
    try:
        return Signature.model_validate_json(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "signature"
        raise ArtifactError(f"the signature is not valid: {where}: {first['msg']}") from error
