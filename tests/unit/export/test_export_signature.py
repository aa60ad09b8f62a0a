"""What an artifact says of itself."""

from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import Tensor

from export import network as network_module
from export.cells import cell_of, operator_weights
from export.errors import ExportError
from export.graph import build
from export.network import freeze, made_by
from export.signature import attach, describe
from export.weights import Language
from model import checkpoint
from model.networks import Network, State
from service.artifact import SIGNATURE_KEY, Recurrence, Signature, parse_signature
from service.engine.providers import open_session
from service.settings import load_settings
from tests.support import artifacts

ROOT = Path(__file__).parents[3]
# The operators' own names of their inputs, in their order.
FORMAL = {
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
}


def _in_file(path: Path) -> Signature:
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return parse_signature(properties[SIGNATURE_KEY])


def test_language_signature(language: Network) -> None:
    """Tokens in, log-probabilities over the vocabulary out, h and c carried, lengths named."""
    signature = describe(freeze(language))
    assert (signature.task, signature.cell, signature.lengths) == ("language", "lstm", "lengths")
    assert signature.vocabulary == tuple("abcdefg\n")
    assert [(i.name, i.dtype, i.shape) for i in signature.inputs] == [("tokens", "int64", (None, None))]
    assert [(o.name, o.dtype, o.shape) for o in signature.outputs] == [("logprobs", "float32", (None, None, 8))]
    assert [(s.input, s.output, s.shape, s.batch_axis) for s in signature.states] == [
        ("h", "h_next", (2, None, 12), 1),
        ("c", "c_next", (2, None, 12), 1),
    ]


def test_forecast_signature(forecast: Network) -> None:
    """Values in, the next values of all features out, in the same order; the scaling is recorded."""
    signature = describe(freeze(forecast))
    assert (signature.task, signature.features, signature.vocabulary) == ("forecast", ("pressure", "flow"), None)
    assert signature.inputs[0].step_shape == signature.outputs[0].step_shape == (2,)
    assert signature.scaling is not None
    assert signature.scaling.mean == pytest.approx([101_300.0, 0.002])
    assert signature.scaling.scale == pytest.approx([850.0, 0.0004])


def test_states_are_those_of_the_cell(network: Network, cell: str) -> None:
    """An RNN and a GRU carry h, an LSTM of any kind h and c."""
    signature = describe(freeze(network))
    states = ["h"] if cell in ("rnn", "gru") else ["h", "c"]
    assert (signature.cell, [s.input for s in signature.states]) == (cell, states)


def _read_by_operators(graph: onnx.GraphProto) -> tuple[Recurrence, ...]:
    """The recurrent nodes of a graph, in order, with the tensors and attributes that they have there."""
    found = []
    for node in graph.node:
        if node.op_type in FORMAL:
            inputs = dict(zip(FORMAL[node.op_type], node.input, strict=False))
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            recurrence = Recurrence(
                operator=node.op_type,
                name=node.name,
                hidden=attributes["hidden_size"],
                sequence=inputs["X"],
                weight=inputs["W"],
                recurrence=inputs["R"],
                bias=inputs["B"],
                peephole=inputs.get("P"),
                states=tuple(inputs[name] for name in ("initial_h", "initial_c") if name in inputs),
                linear_before_reset=attributes.get("linear_before_reset", False),
                coupled=attributes.get("input_forget", False),
            )
            found.append(recurrence)
    return tuple(found)


def test_recurrences_name_what_the_operators_read(network: Network) -> None:
    """One entry per layer, in order, with the very tensors and attributes of its node in the graph."""
    weights = freeze(network)
    found = describe(weights).recurrences
    assert len(found) == network.config.layers
    assert found == _read_by_operators(build(weights).graph)


@pytest.mark.parametrize("model", ["language", "sine"])
def test_shipped_artifacts_tell_their_recurrences(model: str) -> None:
    """What the repository ships can be looked into, too."""
    path = ROOT / "model_repository" / model / "1" / "model.onnx"
    found = _in_file(path).recurrences
    assert len(found) == 2
    assert found == _read_by_operators(onnx.load(path).graph)


def test_what_a_recurrence_names_can_be_fetched(network: Network) -> None:
    """Each tensor can be made an output of the graph: the constants as they are, the others as the node reads them."""
    weights, rows, steps = freeze(network), 3, 4
    model = build(weights)
    found = describe(weights).recurrences
    names = [n for r in found for n in (r.sequence, r.weight, r.recurrence, r.bias, r.peephole, *r.states) if n]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(model.SerializeToString(), load_settings(provider="cpu"))
    shape, random = (len(found), rows, found[0].hidden), np.random.default_rng(0)
    states = {s.input: random.normal(size=shape).astype(np.float32) for s in describe(weights).states}
    language = isinstance(weights, Language)
    inputs = np.zeros((rows, steps), np.int64) if language else np.zeros((rows, steps, 2), np.float32)
    feed = {"tokens" if language else "values": inputs, "lengths": np.full(rows, steps, np.int32)}
    fetched = dict(zip(names, session.run(names, feed | states), strict=True))
    for i, recurrence in enumerate(found):
        assert fetched[recurrence.sequence].shape[:2] == (steps, rows)
        constants = operator_weights(cell_of(network.config.cell), weights.recurrence.layers[i])
        for name, constant in zip("WRBP", constants.values(), strict=False):
            assert (fetched[f"{name}_{i}"] == constant).all()
        for name, state in zip(recurrence.states, states.values(), strict=True):
            assert (fetched[name] == state[i : i + 1]).all()


def test_made_tells_training_and_export(language: Network) -> None:
    """What training recorded is kept as it was; the versions that exported are added."""
    made = made_by(checkpoint.Checkpoint(language, language.config, {"seed": 7, "losses": {"best": 1.25}}))
    assert made["seed"] == 7
    assert made["losses"] == {"best": 1.25}
    assert set(made["export"]["versions"]) == {"lstm-serve", "onnx", "onnxruntime", "torch"}


def test_made_holds_no_folders(language: Network) -> None:
    """A checkpoint that recorded whole paths is published without them, and with the rest of its command."""
    command = "lstm-serve train forecast --csv '/home/eve/my plant/load.csv' --target m/s --out=/srv/secret/load"
    made = made_by(checkpoint.Checkpoint(language, language.config, {"command": command}))
    assert made["command"] == "lstm-serve train forecast --csv load.csv --target m/s --out=load"


def test_made_names_a_source_tree(language: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where lstm-serve runs without being installed, the record says so instead of naming a version."""

    def missing(package: str) -> str:
        if package == "lstm-serve":
            raise PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(network_module, "version", missing)
    made = made_by(checkpoint.Checkpoint(language, language.config, {}))
    assert made["export"]["versions"]["lstm-serve"] == "source tree"


def test_a_network_of_another_kind_is_refused(language: Network) -> None:
    """A network that has no graph is told by name."""

    class Other(Network):
        def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
            return inputs, state

    with pytest.raises(ExportError, match="a network of the kind Other cannot be exported"):
        freeze(Other(language.config, 5, 8))


def test_signature_travels_in_the_file(network: Network, tmp_path: Path) -> None:
    """The metadata of the file holds exactly the signature that was attached."""
    weights = freeze(network)
    signature = describe(weights, {"seed": 3})
    path = tmp_path / "model.onnx"
    path.write_bytes(attach(build(weights), signature))
    assert _in_file(path) == signature


def test_the_same_weights_give_the_same_file(network: Network) -> None:
    """Nothing in an artifact depends on when it was made, so that its fingerprint can be reproduced."""
    weights = freeze(network)
    assert attach(build(weights), describe(weights)) == attach(build(weights), describe(weights))


def test_weights_are_copies(forecast: Network) -> None:
    """Frozen weights do not change when training goes on."""
    weights = freeze(forecast)
    before = weights.recurrence.head_bias.copy()
    forecast.head.bias.data += 1
    assert (weights.recurrence.head_bias == before).all()
    assert asdict(weights)["features"] == ("pressure", "flow")


def test_support_artifacts_describe_themselves(tmp_path: Path) -> None:
    """The small artifacts of the tests carry full signatures of all three tasks."""
    folder = artifacts.repository(
        tmp_path, adder=artifacts.running_sum, words=artifacts.language, wave=artifacts.forecast, bad=artifacts.poison
    )
    tasks = {path.parts[-3]: _in_file(path).task for path in folder.glob("*/1/model.onnx")}
    assert tasks == {"adder": "generic", "words": "language", "wave": "forecast", "bad": "generic"}
