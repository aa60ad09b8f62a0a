"""Whether a module is a function: the same questions, the same answers. Knows nothing of axes, exporters or ONNX."""

import torch
from torch import Tensor

from export.errors import ExportError
from export.modules.calling import Call, first_line

_REPEATS = 4  # of a question, since draws may agree by chance


def check_repeats(call: Call) -> None:
    """The same questions, the same answers: all that a module remembers must go in and come back."""
    before = {name: buffer.clone() for name, buffer in call.module.named_buffers()}
    first = _two_answers(call)
    for _ in range(_REPEATS):
        if not all(((a == b) | (a != a)).all() for a, b in zip(_two_answers(call), first, strict=True)):
            break
    else:
        return
    changed = [name for name, kept in call.module.named_buffers() if not torch.equal(kept, before[name])]
    draws = "draws random numbers (as nn.functional.dropout does, unless told training=self.training), or keeps a state"
    kept = f"keeps a state in its buffer {changed[0]!r}" if changed else draws
    raise ExportError(
        f"the module answers the same question differently each time: it {kept}, where a state must be a parameter of "
        "forward and be returned"
    )


def _two_answers(call: Call) -> list[Tensor]:
    """What comes of the example, and of the example again with the states that it led to: the first may be zeros."""
    once = call({**call.sequences, **call.carried})
    try:
        twice = call({**call.sequences, **{name: once[name] for name in call.carried}})
    except Exception as error:  # a module of the user's may raise anything
        raise ExportError(f"the module does not run from the states that it returns: {first_line(error)}") from error
    return [*once.values(), *twice.values()]
