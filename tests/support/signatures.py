"""Signatures as documents, for tests that change one thing in them."""

import json
from typing import Any

from service.artifact import Signature, parse_signature

PROOF = {
    "rows_independent": True,
    "batch_error": 0,
    "bit_exact_from": 1,
    "chunked": True,
    "chunk_error": 0,
    "continues": True,
}
STATE = {"input": "h", "output": "h_next", "dtype": "float32", "shape": [None, 3], "batch_axis": 0}


def document(task: str = "generic", **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever JSON can hold
    """A valid signature of a task, as a document, with changes."""
    x = {"name": "x", "dtype": "float32", "shape": [None, None, 2]}
    made: dict[str, Any] = {"task": task, "inputs": [x], "outputs": [x | {"name": "y"}], "states": [STATE]}
    if task == "language":
        made["inputs"] = [{"name": "x", "dtype": "int64", "shape": [None, None]}]
        made["vocabulary"] = ["a", "b"]
    if task == "forecast":
        made["features"] = ["u", "v"]
    return made | changes


def parse(found: dict[str, Any]) -> Signature:
    """As an engine reads it."""
    return parse_signature(json.dumps(found))
