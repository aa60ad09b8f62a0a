"""Models whose weights lie in files beside them: those move into the artifact, and nothing else is read."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from service.engine.runtime import load_engine
from service.settings import load_settings
from tests.support.adopted import lstm
from tests.support.adopting import adopt, sentence

Break = Callable[[Path], object]


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    """A model whose weights lie in a file beside it."""
    path = tmp_path / "in" / "lstm.onnx"
    path.parent.mkdir()
    made = lstm(["x", "h0", "c0"], ["y", "hn", "cn"])
    onnx.save(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (path.parent / "weights.bin").exists()
    return path


def test_external_data_moves_into_the_artifact(parted: Path, tmp_path: Path) -> None:
    """One file is left, which needs no other."""
    assert adopt(parted).exception is None
    parted.with_name("weights.bin").unlink()
    path = tmp_path / "models" / "sum" / "1" / "model.onnx"
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    assert load_engine(path, load_settings(provider="cpu")).signature.states[0].input == "h0"


def _entry(key: str, value: str) -> Break:
    def change(path: Path) -> None:
        made = onnx.load(path, load_external_data=False)
        entries = {e.key: e.value for e in made.graph.initializer[0].external_data} | {key: value}
        del made.graph.initializer[0].external_data[:]
        for name, said in entries.items():
            made.graph.initializer[0].external_data.add(key=name, value=said)
        path.write_bytes(made.SerializeToString())

    return change


def _linked(path: Path) -> None:
    weights = path.with_name("weights.bin")
    outside = path.parent.parent / "outside.bin"
    weights.rename(outside)
    weights.symlink_to(outside)


def _circle(path: Path) -> None:
    weights = path.with_name("weights.bin")
    weights.unlink()
    weights.symlink_to("weights.bin")


def _huge(path: Path) -> None:
    with path.with_name("weights.bin").open("r+b") as file:
        file.truncate(2**33)
    made = onnx.load(path, load_external_data=False)
    made.graph.initializer[0].dims[:] = [2**30]
    del made.graph.initializer[0].external_data[:]
    made.graph.initializer[0].external_data.add(key="location", value="weights.bin")
    path.write_bytes(made.SerializeToString())


PARTED: list[tuple[str, Break, str]] = [
    ("absolute", _entry("location", "/etc/hostname"), "points outside the folder"),
    ("above", _entry("location", "../outside.bin"), "points outside the folder"),
    ("no place", _entry("location", ""), "points outside the folder"),
    ("link", _linked, "points outside the folder"),
    ("missing", lambda path: path.with_name("weights.bin").unlink(), "'weights.bin' is no file beside"),
    ("no file", _entry("location", "."), "is no file beside"),
    ("long name", _entry("location", "a" * 300), "a location that is no path"),
    ("zero byte", _entry("location", "a\0b"), "a location that is no path: 'a\\x00b'"),
    ("circle", _circle, "a location that is no path"),
    ("digits", _entry("offset", "9" * 5000), "is no number: '99999"),
    ("offset", _entry("offset", "99999"), "lies beyond the end of 'weights.bin'"),
    ("negative", _entry("offset", "-4"), "an offset or length that is no number: '-4'"),
    ("length", _entry("length", "7"), "a length of 7 bytes where its shape needs"),
    ("short", lambda path: path.with_name("weights.bin").write_bytes(b"1234"), "lies beyond the end"),
    ("too large", _huge, "is too large: 4.3 GB"),
]


@pytest.mark.parametrize(("change", "said"), [p[1:] for p in PARTED], ids=[p[0] for p in PARTED])
def test_external_data_that_lies_is_refused(parted: Path, tmp_path: Path, change: Break, said: str) -> None:
    """Nothing outside the file's own folder is read, and nothing beyond the end of a file."""
    change(parted)
    assert said in sentence(adopt(parted), tmp_path)
