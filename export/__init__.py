"""The door for Python: ``import export; export.from_torch(...)``. It opens when it is used, so that the command line
and the server need no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.modules.converting import from_torch as from_torch

__all__ = ["from_torch"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    if name == "from_torch":
        from export.modules.converting import from_torch

        return from_torch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:  # the same PEP: completion in a shell shows the door
    return [*globals(), *__all__]
