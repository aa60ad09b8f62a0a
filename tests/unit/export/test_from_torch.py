"""``export.from_torch``: modules of the user's own become artifacts that answer like them, or one sentence says why."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import export
from export.errors import ExportError
from export.modules import converting
from export.modules.axes import Axes
from export.modules.calling import Call
from export.modules.converting import Converted
from export.modules.exporting import Way
from service.engine.probe import probe
from service.engine.runtime import Engine, load_engine
from service.settings import load_settings
from tests.support.modules import MODULES, Tracker

Convert = Callable[..., Converted]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    """``from_torch`` into a folder of the test's own, with the faster exporter unless told."""

    def converted(module: nn.Module, example: Any, states: dict[str, Any], **options: Any) -> Converted:  # noqa: ANN401 - as from_torch takes them
        return export.from_torch(
            module, example, states, **{"to": tmp_path / "module" / "1", "exporter": "torchscript", **options}
        )

    return converted


class Sum(nn.Module):
    """The sum of what went in: state and answer."""

    def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, time, 1], [batch, 1] -> the sum after each step, the last sum."""
        sums = total[:, None] + x.cumsum(dim=1)
        return sums, sums[:, -1]


SUM = (torch.tensor([[[0.5], [-1.0], [2.0]], [[1.0], [0.25], [-3.0]]]), {"total": torch.zeros(2, 1)})


def _named(name: str) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    foreign = MODULES[name]
    options = {"outputs": foreign.returned(), "constants": foreign.constants}
    return foreign.build(), foreign.inputs(), dict(foreign.states()), options


@pytest.mark.parametrize("name", [name for name in MODULES if name != "projected"])
def test_foreign_modules(name: str, convert: Convert) -> None:
    """Every layout of states is found, exported, adopted and proved."""
    module, inputs, states, options = _named(name)
    made = convert(module, inputs, states, **options)
    foreign = MODULES[name]
    assert made.signature.batched
    assert {i.name: (i.batch_axis, i.time_axis) for i in made.signature.inputs} == dict.fromkeys(
        inputs, (foreign.batch_axis, foreign.time_axis)
    )
    assert [o.name for o in made.signature.outputs] == [*foreign.outputs]
    assert max(made.parity.outputs, made.parity.states) < 1e-5
    assert made.signature.proof is not None
    assert made.signature.proof.rows_independent
    assert made.signature.proof.chunked


def test_a_projection_is_taken_apart(convert: Convert, capfd: pytest.CaptureFixture[str]) -> None:
    """Both exporters fail for nn.LSTM with projections: a third way is right, and nobody is shown the noise."""
    module, inputs, states, options = _named("projected")
    made = convert(module, inputs, states, exporter="auto", **options)
    assert (made.way, set(made.rejected)) == ("decomposed", {"dynamo", "torchscript"})
    assert [state.row_shape for state in made.signature.states] == [(1, 4), (1, 12)]
    assert not made.signature.has_time_axis
    assert capfd.readouterr() == ("", "")


def test_dynamo_comes_first(convert: Convert) -> None:
    """The exporter that torch recommends is taken where it is right; gates can be shown of what it makes, too."""
    made = convert(nn.GRU(3, 5, batch_first=True), torch.randn(1, 4, 3), {"hx": torch.zeros(1, 1, 5)}, exporter="auto")
    assert (made.way, made.rejected) == ("dynamo", {})
    assert made.signature.made["exporter"] == "dynamo"
    assert [recurrence.operator for recurrence in made.signature.recurrences] == ["GRU"]


def test_what_an_exporter_gets_silently_wrong_is_refused(
    convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that loads, runs and answers otherwise than the module is not published."""
    right = converting.export

    def wrong(call: Call, axes: Axes, way: Way) -> Any:  # noqa: ANN401 - a model
        weights = copy.deepcopy(call.module)
        with torch.no_grad():
            for parameter in weights.parameters():
                parameter.mul_(1.01)
        return right(Call(weights, call.inputs, call.states, call.constants, call.returned), axes, way)

    monkeypatch.setattr(converting, "export", wrong)
    module, inputs, states, options = _named("tracker")
    with pytest.raises(
        ExportError, match=r"Tracker cannot be exported \(torchscript: .* differ from the module's own by"
    ):
        convert(module, inputs, states, **options)
    assert list(tmp_path.iterdir()) == []


class Frozen(nn.Module):
    """Takes a decision by its data: a trace takes it once and for all."""

    def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, 1], [batch, 1] -> the same."""
        total = total + x if x.sum() > 0 else total - x
        return total, total


def test_a_trace_that_froze_a_decision_is_refused(convert: Convert) -> None:
    """No exporter can express it, one does not notice: the one sentence tells of all of them."""
    reasons = r"dynamo, decomposed: [^\n]*; torchscript: [^\n]* differ from the module's own [^\n]*"
    with pytest.raises(ExportError, match=rf"^Frozen cannot be exported \({reasons}\)$"):
        convert(Frozen(), torch.tensor([[0.5], [-0.5]]), {"total": torch.zeros(2, 1)}, exporter="auto")


def test_the_module_is_left_as_it_was(convert: Convert) -> None:
    """Modes, weights, buffers and gradients are those of before."""
    module = nn.Sequential(Tracker(), nn.BatchNorm1d(2)).train()
    module[1].eval()
    before = copy.deepcopy(module.state_dict())
    tracker = module[0]
    tracker.head.weight.grad = torch.ones(3, 8)
    convert(tracker, torch.randn(5, 2, 3), {"h0": torch.zeros(2, 2, 8)})
    assert [part.training for part in (module[0], module[0].gru, module[1])] == [True, True, False]
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(tracker.head.weight.grad, torch.ones(3, 8))
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def _engine(made: Converted) -> Engine:
    engine = load_engine(made.path, load_settings(provider="cpu"))
    probe(engine)
    return engine


def test_sessions_begin_with_the_example_states(convert: Convert) -> None:
    """A state that is not zeros is the initial value of every row."""
    engine = _engine(convert(Sum(), SUM[0], {"total": torch.full((2, 1), 7.0)}))
    done = engine.run([engine.initial_row], [(np.array([[1.0], [2.0]], np.float32),)])
    assert done.outputs["output"][0].tolist() == [[8.0], [10.0]]


def test_one_row_of_example_is_enough(convert: Convert) -> None:
    """A batch and a state whose axes all have the length 1 say nothing: running the module does."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(1, 1)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            y, h = self.gru(x, h)
            return y, h

    made = convert(One(), torch.randn(1, 1, 1), {"h": torch.zeros(1, 1, 1)})
    assert (made.signature.inputs[0].batch_axis, made.signature.inputs[0].time_axis) == (1, 0)
    assert made.signature.states[0].batch_axis == 1


def test_a_module_of_one_row_at_a_time(convert: Convert) -> None:
    """Without any batch axis it is served one row per call."""
    module = nn.LSTM(2, 4)  # takes [time, width] as well

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = module

        def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            y, after = self.lstm(x[:, None], (state[0][:, None], state[1][:, None]))
            return y[:, 0], (after[0][:, 0], after[1][:, 0])

    zeros = (torch.zeros(1, 4), torch.zeros(1, 4))
    made = convert(Single(), torch.randn(5, 2), {"state": zeros}, batch_axis=None, time_axis=0)
    assert not made.signature.batched
    assert [s.input for s in made.signature.states] == ["state_0", "state_1"]
    assert made.parity.outputs < 1e-5


def test_a_named_time_axis_that_the_answer_lacks(convert: Convert) -> None:
    """Where only the last step is answered, a call is one step."""

    class Last(Sum):
        def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
            sums, total = super().forward(x, total)
            return sums[:, -1], total

    made = convert(Last(), *SUM, time_axis=1)
    assert made.signature.inputs[0].step_shape == (1,)
    assert not made.signature.has_time_axis
    whole = convert(Last(), *SUM, time_axis=None, force=True)
    assert whole.signature.inputs[0].step_shape == (3, 1)  # three numbers are one step
    with pytest.raises(ExportError, match=r"may be sequences: with time_axis={'x': 1} each call is one step"):
        convert(Last(), *SUM)
    assert not convert(Last(), *SUM, time_axis={"x": 1}, force=True).signature.has_time_axis


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_cell_whose_answer_is_its_state(exporter: str, convert: Convert) -> None:
    """Torch's own cells return nothing but the new state, and others the same tensor twice."""

    class Twice(nn.GRUCell):
        def forward(self, input: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # noqa: A002 - torch's name
            h = super().forward(input, hx)
            return h, h

    example, states = torch.randn(2, 3), {"hx": torch.zeros(2, 4)}
    once = convert(nn.GRUCell(3, 4), example, states, exporter=exporter)
    assert [output.name for output in once.signature.outputs] == ["hx_next"]
    twice = convert(Twice(3, 4), example, states, exporter=exporter, force=True)
    assert [output.name for output in twice.signature.outputs] == ["output"]


class Levels(NamedTuple):
    """A state as some put it together."""

    fast: Tensor
    more: dict[str, Tensor]


def test_states_and_answers_may_be_nested(convert: Convert) -> None:
    """Named tuples and dicts of tensors go in as they came, and are told apart by name."""

    class Crossing(nn.Module):
        def forward(self, x: Tensor, levels: Levels) -> dict[str, object]:
            fast = levels.fast + (x - levels.fast) / 2
            slow = levels.more["slow"] + (x - levels.more["slow"]) / 8
            return {"crossed": fast > slow, "levels": Levels(fast, {"slow": slow})}

    example, zeros = torch.randn(2, 3), torch.zeros(2, 3)
    made = convert(Crossing(), example, {"levels": Levels(zeros, {"slow": zeros})}, outputs=["crossed"])
    assert [s.input for s in made.signature.states] == ["levels_0", "levels_1_slow"]
    assert [(o.name, o.dtype) for o in made.signature.outputs] == [("crossed", "bool")]


def test_rows_that_leak_are_refused(convert: Convert, tmp_path: Path) -> None:
    """A module that looks at the other rows of its batch would mix up sessions."""

    class Leaky(Sum):
        def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x - x.mean(dim=0, keepdim=True), total)

    with pytest.raises(ExportError, match=r"Leaky cannot be exported .torchscript: rows leak into each other") as one:
        convert(Leaky(), *SUM)
    assert str(one.value).endswith("serve the model one row per call with batch_axis=None)")
    with pytest.raises(ExportError, match=r"Leaky cannot be exported .in all three ways: rows leak into each other"):
        convert(Leaky(), *SUM, exporter="auto")
    assert list(tmp_path.iterdir()) == []


def test_the_artifact_of_a_version_does_not_change(convert: Convert) -> None:
    """As with every artifact; ``force`` replaces it."""
    first = convert(Sum(), *SUM)
    with pytest.raises(ExportError, match=r"another artifact already.*or replace it with force=True"):
        convert(Sum(), SUM[0], {"total": torch.ones(2, 1)})
    assert convert(Sum(), SUM[0], {"total": torch.ones(2, 1)}, force=True).fingerprint != first.fingerprint


TOTAL = SUM[1]


@pytest.mark.parametrize(
    ("example", "states", "options", "sentence"),
    [
        (SUM[0], {}, {}, "states is empty"),
        ((), TOTAL, {}, "example_inputs is empty"),
        (SUM[0], {"sum": TOTAL["total"]}, {}, "forward has no parameter 'sum' .it has x, total"),
        ({"y": SUM[0]}, TOTAL, {}, "forward has no parameter 'y'"),
        ({"total": SUM[0]}, TOTAL, {}, "'total' is given twice"),
        ((SUM[0], SUM[0]), TOTAL, {}, "example_inputs has 2 tensors where forward takes 1"),
        (SUM[0], {"total": 0.0}, {}, "'total' is of type float, expected a tensor"),
        (3, TOTAL, {}, "'x' is of type int, expected a tensor"),
        (SUM[0], {"total": ()}, {}, "example_inputs and states hold no tensor"),
        (SUM[0], {"total": torch.zeros(2, 1), "x": 1}, {}, "example_inputs has 1 tensors where forward takes 0"),
        (
            SUM[0],
            {"total": torch.zeros(3, 1)},
            {},
            "states must have as many rows as the inputs .2.: 'total' has 3 on axis 0",
        ),
        (SUM[0], {"total": torch.zeros(4)}, {}, "does not run on its example: RuntimeError"),
        (SUM[0], {"total": torch.tensor([[0.0], [1.0]])}, {}, "the rows of state 'total' differ"),
        (
            SUM[0],
            TOTAL,
            {"outputs": ["a", "b"]},
            "forward returns 2 tensors where these are expected, in this order: a, b, t",
        ),
        (SUM[0], TOTAL, {"outputs": ["total", "a"]}, "state 'total' goes in as float32 .2, 1. and comes back as"),
        (SUM[0], TOTAL, {"outputs": ["x"]}, "two tensors are called 'x'"),
        (SUM[0], TOTAL, {"batch_axis": 5}, "axis 5 of 'x' does not exist"),
        (SUM[0], TOTAL, {"batch_axis": {"y": 0}}, "axis 0 of 'y' does not exist"),
        (SUM[0], TOTAL, {"batch_axis": 1}, "does not run with 3 rows"),
        (SUM[0], TOTAL, {"exporter": "jit"}, "exporter is 'jit', expected one of auto, dynamo, torchscript"),
        (SUM[0], TOTAL, {"to": "somewhere"}, "is not a version folder"),
        (SUM[0] / 0, TOTAL, {}, "the module itself answers NaN or infinity"),
    ],
)
def test_each_mistake_has_its_sentence(
    example: Any,  # noqa: ANN401 - whatever users hand over
    states: dict[str, Any],
    options: dict[str, Any],
    sentence: str,
    convert: Convert,
    tmp_path: Path,
) -> None:
    """What does not fit is named, in one line, and nothing is written."""
    with pytest.raises(ExportError, match=sentence) as refused:
        convert(Sum(), example, states, **options)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_arguments_of_forward_that_are_missing(convert: Convert) -> None:
    """A parameter that nothing is given for is named."""
    module, inputs, states, _ = _named("detector")
    with pytest.raises(ExportError, match="forward needs 'sr': give it in example_inputs, states or constants"):
        convert(module, inputs, states)


def test_a_module_that_forgets_is_told(convert: Convert) -> None:
    """With a time axis by name, chunks must add up to the whole."""

    class Centred(Sum):
        def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x - x.mean(dim=1, keepdim=True), total)

    for time_axis in (1, "auto"):
        with pytest.raises(ExportError, match="a sequence cut into chunks is answered otherwise than the whole"):
            convert(Centred(), *SUM, time_axis=time_axis)


def test_a_sequence_that_cannot_be_cut_is_a_step_only_where_the_user_says_so(convert: Convert) -> None:
    """A layer that reads backwards, too, takes blocks of one length, or nothing is published."""

    class Both(nn.LSTM):
        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
            y, (h, c) = super().forward(x, (h, c))
            return y, h, c

    module, states = Both(3, 4, batch_first=True, bidirectional=True), {n: torch.zeros(2, 2, 4) for n in "hc"}
    with pytest.raises(ExportError, match="with time_axis=None each call of the example's length is one step"):
        convert(module, torch.randn(2, 7, 3), states)
    made = convert(module, torch.randn(2, 7, 3), states, time_axis=None)
    assert (made.signature.inputs[0].shape, made.signature.inputs[0].time_axis) == ((None, 7, 3), None)
    assert "input x: float32 [?, 7, 3], one step is [7, 3], batch axis 0, time axis None" in str(made).splitlines()
    assert "a request is one step; exported by torchscript" in str(made)


def test_several_inputs_that_may_be_sequences(convert: Convert) -> None:
    """Those that only grow together are found, too, and one beside an input that has no steps."""

    class Pooled(nn.Module):
        def __init__(self, level: str) -> None:
            super().__init__()
            self.level = level

        def forward(self, x: Tensor, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = h + (x + y if self.level == "both" else x * y[:, None, :1]).mean(dim=1)
            return h.tanh(), h

    example, states = {"x": torch.randn(2, 7, 1), "y": torch.randn(2, 7, 1)}, {"h": torch.zeros(2, 1)}
    with pytest.raises(ExportError, match=r"any length along {'x': 1, 'y': 1}"):
        convert(Pooled("both"), example, states)
    with pytest.raises(ExportError, match=r"any length along {'x': 1}"):
        convert(Pooled("one"), {**example, "y": torch.randn(2, 3)}, states)


def test_a_block_of_fractions_is_a_step(convert: Convert) -> None:
    """Of a chunk of audio there is no axis but its samples, whatever their number."""

    class Loudness(nn.Module):
        def forward(self, chunk: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
            level = (level + (chunk**2).mean(dim=1, keepdim=True)) / 2
            return level.sqrt(), level

    made = convert(Loudness(), torch.randn(2, 64), {"level": torch.zeros(2, 1)})
    assert made.signature.inputs[0].step_shape == (64,)


def test_one_row_at_a_time_of_an_example_of_two(convert: Convert) -> None:
    """Two sessions are not taken for one, unless the user says by name that they are."""
    with pytest.raises(ExportError, match="the example has 2 of them on axis 0: leave batch_axis out"):
        convert(Sum(), *SUM, batch_axis=None)
    made = convert(Sum(), *SUM, batch_axis={"x": None})
    assert (made.signature.batched, made.signature.states[0].row_shape) == (False, (2, 1))
    alone = convert(Sum(), SUM[0][:1], {"total": torch.zeros(1, 1)}, batch_axis=None, force=True)
    assert (alone.signature.batched, alone.signature.inputs[0].time_axis) == (False, 1)
