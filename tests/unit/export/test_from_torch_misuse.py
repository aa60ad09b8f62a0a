"""What modules do that they should not, and what users hand over by mistake: a right artifact, or one sentence."""

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
        (Decaying, "module is of type type, expected an nn.Module"),
    ],
    ids=["buffer", "random", "class"],
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


def test_one_output_may_be_a_text(tmp_path: Path) -> None:
    """Its name, not its letters."""
    made = export.from_torch(
        Decaying(), EXAMPLE, STATES, to=tmp_path / "m" / "1", outputs="twice", exporter="torchscript"
    )
    assert [spec.name for spec in made.signature.outputs] == ["twice"]
    assert "torch" in made.signature.made["versions"]
