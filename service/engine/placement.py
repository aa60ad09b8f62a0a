"""Which nodes of a model run on which execution provider, as ONNX Runtime has placed them."""

from collections import Counter
from collections.abc import Mapping

from service.engine import ort
from service.engine.providers import open_session
from service.settings import Settings

_RECORD = "session.record_ep_graph_assignment_info"


def placement(model: bytes, settings: Settings) -> Mapping[str, Counter[str]]:
    """For each provider how many nodes of each operator it runs, after ONNX Runtime's own rewriting of the graph.

    Empty where ONNX Runtime is too old to tell.
    """
    if not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        return {}
    session = open_session(model, settings, {_RECORD: "1"})
    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return found
