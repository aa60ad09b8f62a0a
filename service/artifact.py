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
    """An input or output of the graph that carries a sequence.

    ``batch_axis`` None: one call is one row. ``time_axis`` None, or of the fixed length 1: one call is one step.
    """

    name: str
    dtype: DType
    shape: Shape
    batch_axis: int | None = 0
    time_axis: int | None = 1

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _check_axis(self.name, "batch_axis", self.batch_axis, self.shape)
        _check_axis(self.name, "time_axis", self.time_axis, self.shape)
        if self.time_axis is not None and self.time_axis == self.batch_axis:
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
    batch_axis: int | None
    initial: Tensor | None = Field(default=None, description="one row's first state; none means zeros")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _check_axis(self.input, "batch_axis", self.batch_axis, self.shape)
        return self

    @cached_property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row: the tensor's without the batch axis."""
        return tuple(n or 1 for i, n in enumerate(self.shape) if i != self.batch_axis)


def _check_axis(name: str, kind: str, axis: int | None, shape: Shape) -> None:
    """Rows and steps vary from call to call, or there is one of them in every call."""
    if axis is None:
        return
    if not 0 <= axis < len(shape):
        raise ValueError(f"{kind} {axis} of {name!r} is none of its {len(shape)} axes")
    if shape[axis] not in (None, 1):
        raise ValueError(f"axis {axis} of {name!r} is its {kind} and has the fixed length {shape[axis]}")


class Scaling(_Part):
    """Mean and scale of each feature, in the user's units: what ordinary inputs look like.

    The graph scales by itself; this is for whoever has to make up inputs, such as the probe and the parity gate.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]


class Recurrence(_Part):
    """A native recurrent operator of the graph, by the names of its tensors there, so that its gates can be recomputed.

    Forward in time, time first, with the operator's default activations and no clipping. ``sequence`` is its input
    [time, batch, width]; ``weight`` (W), ``recurrence`` (R), ``bias`` (B) and ``peephole`` (P) are constants;
    ``states`` are its initial states, each [1, batch, hidden]: h, and c of an LSTM.
    """

    operator: Literal["RNN", "GRU", "LSTM"]
    name: str
    hidden: int = Field(ge=1)
    sequence: str
    weight: str
    recurrence: str
    bias: str | None = None
    peephole: str | None = None
    states: tuple[str, ...]
    linear_before_reset: bool = Field(default=False, description="GRU: the reset gate acts behind the matrix product")
    coupled: bool = Field(default=False, description="LSTM: the forget gate is 1 less the input gate")


class Proof(_Part):
    """What runs have shown of a model that was not built here, on the machine that adopted it; errors in units."""

    rows_independent: bool = Field(description="a row's answer and state do not depend on what its neighbours hold")
    batch_error: float = Field(description="largest difference between a row in a batch and the same row alone")
    bit_exact_from: int | None = Field(description="from so many rows on a batch changes no bit; none: never")
    chunked: bool = Field(description="a sequence may be cut into chunks anywhere")
    chunk_error: float = Field(description="largest difference between a sequence cut into chunks and the whole")
    continues: bool = Field(description="a state that was exported and imported goes on with the same bits")


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
    batched: bool = Field(default=True, description="false: the graph is called for one row at a time")
    lengths: str | None = Field(default=None, description="the input with each row's number of steps, int32 or int64")
    constants: dict[str, Tensor] = Field(default_factory=dict, description="inputs that always have one value")
    vocabulary: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    scaling: Scaling | None = None
    recurrences: tuple[Recurrence, ...] = Field(default=(), description="operators whose gates can be shown")
    proof: Proof | None = None
    made: dict[str, Any] = Field(default_factory=dict, description="data, seed, steps, losses, versions")

    @property
    def symbols(self) -> int:
        """How many tokens there are, of a model that takes nothing else; 0 of any other."""
        return len(self.vocabulary) if self.vocabulary is not None and len(self.inputs) == 1 else 0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        self._check_names()
        self._check_rows()
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

    def _check_rows(self) -> None:
        """Many rows share a call where each tensor has an axis for them, of a length that varies."""
        if self.batched and self.proof is not None and not self.proof.rows_independent:
            raise ValueError("the proof says that rows are not independent: the model is not batched")
        if not self.batched and self.lengths is not None:
            raise ValueError("lengths are for models that are called for many rows at a time")
        for name, axis, shape in self._tensors() if self.batched else ():
            if axis is None or shape[axis] is not None:
                raise ValueError(f"{name!r} has no batch axis of varying length: the model is not batched")

    def _tensors(self) -> list[tuple[str, int | None, Shape]]:
        carried = [(t.name, t.batch_axis, t.shape) for t in self.inputs + self.outputs]
        return carried + [(s.input, s.batch_axis, s.shape) for s in self.states]

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
        """Whether one call can run several steps: all that goes in and comes out has an axis for them."""
        return all(t.time_axis is not None and t.shape[t.time_axis] is None for t in self.inputs + self.outputs)


def parse_signature(document: str) -> Signature:
    """The signature in an artifact's metadata; ArtifactError names the first thing that is wrong in it."""
    try:
        return Signature.model_validate_json(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "signature"
        raise ArtifactError(f"the signature is not valid: {where}: {first['msg']}") from error
