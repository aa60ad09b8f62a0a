"""What modules do that they should not, and what users hand over by mistake: a right artifact, or one sentence."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import export
from export.errors import ExportError
from service.engine.runtime import load_engine
from service.settings import load_settings

EXAMPLE, STATES = torch.tensor([[0.5, -1.0], [2.0, 0.25]]), {"h": torch.zeros(2, 2)}


class Decaying(nn.Module):
    """Adds up, and forgets half of it with each step."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, 2], [batch, 2] -> answer, next state."""
        h = h * 0.5 + x
        return h * 2, h


class InPlace(nn.Module):
    """The same, written into the tensor that was handed over."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Decaying``."""
        h.mul_(0.5).add_(x)
        return h * 2, h


class Buffered(Decaying):
    """Keeps a state of its own in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.seen: Tensor

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Decaying``, plus the number of calls."""
        self.seen.add_(1)
        answer, h = super().forward(x, h)
        return answer + self.seen, h


class Random(Decaying):
    """Draws random numbers, in evaluation mode, too."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Decaying``, plus noise."""
        answer, h = super().forward(x, h)
        return answer + torch.rand_like(answer), h


class Dropping(Decaying):
    """Drops parts of its state, whatever the mode; of zeros nobody notices."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Decaying``."""
        return super().forward(x, nn.functional.dropout(h))


def test_the_door_is_shown() -> None:
    """``dir`` lists it, for completion in a shell."""
    assert "from_torch" in dir(export)


def test_a_state_that_is_changed_in_place_stays_the_users(tmp_path: Path) -> None:
    """The example is not touched, and sessions begin where it says, not where the first trial led."""
    state = torch.zeros(1, 2)
    made = export.from_torch(InPlace(), EXAMPLE[:1], {"h": state}, to=tmp_path / "m" / "1", exporter="torchscript")
    assert not state.any()
    engine = load_engine(made.path, load_settings(provider="cpu"))
    assert engine.signature.states[0].initial is None
    done = engine.run([engine.initial_row], [(EXAMPLE[:1].numpy(),)])
    assert done.outputs["output"].tolist() == [[[1.0, -2.0]]]


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (
            Buffered(),
            "the module answers .* differently each time: it keeps a state in its buffer 'seen', where a state",
        ),
        (Random(), "differently each time: it draws random numbers"),
        (Dropping(), "differently each time: it draws random numbers .as nn.functional.dropout does"),
        (Decaying, "module is of type type, expected an nn.Module"),
    ],
    ids=["buffer", "random", "dropout", "class"],
)
def test_a_module_is_a_function(tmp_path: Path, module: Any, sentence: str) -> None:  # noqa: ANN401 - whatever users do
    """What it remembers goes in and comes back; the module itself is as it was."""
    with pytest.raises(ExportError, match=sentence):
        export.from_torch(module, EXAMPLE, STATES, to=tmp_path / "m" / "1")
    assert list(tmp_path.iterdir()) == []
    if isinstance(module, Buffered):
        assert module.seen.item() == 0


@pytest.mark.parametrize(
    ("states", "options", "sentence"),
    [
        ([torch.zeros(2, 2)], {}, "states is no dict"),
        (torch.zeros(2, 2), {}, "states is no dict"),
        (STATES, {"batch_axis": "first"}, "an axis is 'first', expected a number, None, or a dict"),
        (STATES, {"tolerance": -1.0}, "tolerance is -1.0, expected a number above 0"),
        (STATES, {"outputs": ["h", "h"]}, "two tensors are called 'h'"),
    ],
)
def test_arguments_of_another_kind(tmp_path: Path, states: Any, options: dict[str, Any], sentence: str) -> None:  # noqa: ANN401
    """Each is named, in one sentence."""
    with pytest.raises(ExportError, match=sentence) as refused:
        export.from_torch(Decaying(), EXAMPLE, states, to=tmp_path / "m" / "1", **options)
    assert "\n" not in str(refused.value)


def test_a_state_that_the_module_cannot_take_back(tmp_path: Path) -> None:
    """What it returned at first is too much for it."""

    class Once(Decaying):
        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            if h.any():
                raise ValueError("begun already")
            return super().forward(x, h)

    with pytest.raises(ExportError, match="does not run from the states that it returns: ValueError: begun already"):
        export.from_torch(Once(), EXAMPLE, STATES, to=tmp_path / "m" / "1")


def test_an_input_called_length_is_an_input(tmp_path: Path) -> None:
    """Clients send it, with each step."""

    class Gaited(nn.Module):
        def forward(self, x: Tensor, step_length: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = h + x * step_length[:, None]
            return h.tanh(), h

    example = (EXAMPLE, torch.tensor([2, 3]))
    made = export.from_torch(Gaited(), example, STATES, to=tmp_path / "m" / "1", exporter="torchscript")
    assert [spec.name for spec in made.signature.inputs] == ["x", "step_length"]


def test_a_loop_is_unrolled_by_one_exporter_only(tmp_path: Path) -> None:
    """The sentence says what is wrong, and offers nothing that only the command line has."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(2, 2)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            states = []
            for t in range(x.shape[1]):
                h = self.cell(x[:, t], h)
                states.append(h)
            return torch.stack(states, dim=1), h

    example, to = torch.randn(2, 7, 2), tmp_path / "m" / "1"
    with pytest.raises(ExportError, match=r"unrolled the steps of the example and fixed their number\)") as refused:
        export.from_torch(Loop(), example, STATES, to=to, exporter="torchscript")
    assert not re.search(r"--|from_torch", str(refused.value))
    assert export.from_torch(Loop(), example, STATES, to=to).way == "decomposed"


def test_one_output_may_be_a_text(tmp_path: Path) -> None:
    """Its name, not its letters."""
    made = export.from_torch(
        Decaying(), EXAMPLE, STATES, to=tmp_path / "m" / "1", outputs="twice", exporter="torchscript"
    )
    assert [spec.name for spec in made.signature.outputs] == ["twice"]
    assert "torch" in made.signature.made["versions"]
