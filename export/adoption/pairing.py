"""Which input comes back as which output: the states of a foreign graph, found by shape, type and name.

A name is split into words; markers such as ``in``, ``prev``, ``0`` of an input, ``out``, ``next``, ``n`` of an output
may be dropped, and two names fit when the same words are left. The fewer were dropped, the better they fit: so
``cache_0`` goes with ``new_cache_0`` and not with ``new_cache_1``, while ``h0`` still goes with ``hn``.
"""

import re
from collections.abc import Iterable, Sequence

from export.adoption.ports import Port, Ports
from export.adoption.wishes import NONE
from export.errors import ExportError

Pair = tuple[str, str]  # input, output

_BEFORE = {"in", "input", "prev", "previous", "past", "old", "last", "init", "initial", "0", "t", "x"}
_AFTER = {"out", "output", "next", "new", "present", "current", "updated", "final", "n", "1", "t", "y"}
_MOST_DROPS = 3
_BY_SHAPE = 1  # the score of two tensors that fit in shape and type, and whose names say nothing
# What sequences are called: `audio_in` and `audio_out` are no state, unless a word of memory stands beside them.
_SEQUENCES = {
    "x",
    "y",
    "input",
    "output",
    "in",
    "out",
    "audio",
    "signal",
    "wave",
    "waveform",
    "data",
    "feature",
    "features",
    "frame",
    "frames",
    "sample",
    "samples",
    "mel",
    "spec",
    "spectrum",
    "token",
    "tokens",
    "ids",
    "mix",
    "noisy",
    "enhanced",
    "src",
    "tgt",
    "obs",
    "value",
    "values",
}
_MEMORY = {
    "past",
    "prev",
    "previous",
    "old",
    "last",
    "cache",
    "state",
    "states",
    "hidden",
    "cell",
    "memory",
    "mem",
    "h",
    "c",
    "buffer",
}


def find_pairs(ports: Ports, given: Sequence[Pair], taken: Iterable[str]) -> tuple[Pair, ...]:
    """The states in the order of the graph's inputs: those ``given``, and those that fit beyond doubt.

    A pair (input, ``NONE``) says that it is no state, ``taken`` are inputs that are something else. Raises ExportError:
    no states, or a choice that is the user's.
    """
    for pair in given:
        _check_given(ports, *pair)
    used = {i for i, _ in given} | set(taken)
    given = [(i, o) for i, o in given if not _denied(ports, o)]
    inputs = [port for name, port in ports.inputs.items() if name not in used]
    outputs = [port for name, port in ports.outputs.items() if name not in {o for _, o in given}]
    found = _assign([*_by_name(inputs, outputs)])
    if not found and not given:
        found = _assign([*_by_shape(inputs, outputs)])
    pairs = {**dict(given), **dict(found)}
    if not pairs:
        raise ExportError(
            "no states found: no input comes back as an output of the same shape and type; "
            f"give --state in:out (inputs: {_list(ports.inputs)}; outputs: {_list(ports.outputs)})"
        )
    if given and not set(ports.inputs) - set(pairs) - set(taken):
        pairs = dict(given)  # something has to be the sequence
    if not set(ports.inputs) - set(pairs) - set(taken):
        raise ExportError(
            f"every input looks like a state ({_list(f'{i}:{o}' for i, o in pairs.items())}) and none like a sequence: "
            f"say which one is none, such as --state {next(iter(pairs))}:{NONE}"
        )
    return tuple((name, pairs[name]) for name in ports.inputs if name in pairs)


def compatible(a: Port, b: Port) -> bool:
    """Whether one can come back as the other: open axes fit any length."""
    if a.dtype != b.dtype:
        return False
    if a.shape is None or b.shape is None:
        return True
    return len(a.shape) == len(b.shape) and all(
        m == n or not (isinstance(m, int) and isinstance(n, int)) for m, n in zip(a.shape, b.shape, strict=True)
    )


def score(before: str, after: str) -> int:
    """How well the name of an output fits that of an input: 10 less the markers dropped, 0: not at all."""
    words = set(_words(before))
    if words <= _SEQUENCES and not words & _MEMORY:
        return 0
    first, second = _variants(before, _BEFORE), _variants(after, _AFTER)
    drops = [first[words] + second[words] for words in first.keys() & second.keys()]
    return 10 - min(drops) if drops else 0


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name.removesuffix(":0")))


def _variants(name: str, markers: set[str]) -> dict[tuple[str, ...], int]:
    """The words of a name with markers dropped, also such as are glued to a word (``hn``), and how many were."""
    found = {_words(name): 0}
    for drops in range(1, _MOST_DROPS + 1):
        for words in [w for w, n in found.items() if n == drops - 1]:
            for shorter in _shorter(words, markers):
                found.setdefault(shorter, drops)
    found.pop((), None)
    return found


def _shorter(words: tuple[str, ...], markers: set[str]) -> Iterable[tuple[str, ...]]:
    for i, word in enumerate(words):
        if word in markers:
            yield (*words[:i], *words[i + 1 :])
        for marker in markers:
            # One letter is glued on behind only: `hn` is the next h, but `yf` is another thing than f.
            for rest in (word.removesuffix(marker), word.removeprefix(marker) if len(marker) > 1 else word):
                if rest not in ("", word):
                    yield (*words[:i], rest, *words[i + 1 :])


_Edge = tuple[int, Port, Port]


def _by_name(inputs: Sequence[Port], outputs: Sequence[Port]) -> Iterable[_Edge]:
    for i in inputs:
        for o in outputs:
            if compatible(i, o) and (fit := score(i.name, o.name)):
                yield fit, i, o


def _by_shape(inputs: Sequence[Port], outputs: Sequence[Port]) -> Iterable[_Edge]:
    """Tensors whose shapes are told, with one open axis at most: a sequence has a second one."""
    for i in inputs:
        for o in outputs:
            if i.shape and o.shape and len(i.open) <= 1 and len(o.open) <= 1 and compatible(i, o):
                yield _BY_SHAPE, i, o


def _assign(edges: list[_Edge]) -> list[Pair]:
    """The best fits first; ExportError where two are equally good."""
    pairs: list[Pair] = []
    while edges:
        best = max(fit for fit, _, _ in edges)
        top = [(i, o) for fit, i, o in edges if fit == best]
        for i, o in top:
            _check_alone(i, o, top)
        pairs += [(i.name, o.name) for i, o in top]
        done = {i.name for i, _ in top}, {o.name for _, o in top}
        edges = [edge for edge in edges if edge[1].name not in done[0] and edge[2].name not in done[1]]
    return pairs


def _check_alone(i: Port, o: Port, top: Sequence[tuple[Port, Port]]) -> None:
    outputs = [b.name for a, b in top if a.name == i.name]
    inputs = [a.name for a, b in top if b.name == o.name]
    if len(outputs) > 1:
        raise ExportError(
            f"ambiguous: the state {i} may come back as {_list(outputs)}; give --state {i.name}:{outputs[0]} or another"
        )
    if len(inputs) > 1:
        raise ExportError(
            f"ambiguous: the output {o} may be the next of {_list(inputs)}; "
            f"give --state {inputs[0]}:{o.name} or another"
        )


def _denied(ports: Ports, after: str) -> bool:
    return after == NONE and NONE not in ports.outputs


def _check_given(ports: Ports, before: str, after: str) -> None:
    for kind, name, known in (("input", before, ports.inputs), ("output", after, ports.outputs)):
        if name not in known and not (kind == "output" and _denied(ports, after)):
            raise ExportError(f"--state names {kind} {name!r}, which the graph does not have (it has {_list(known)})")
    if _denied(ports, after):
        return
    i, o = ports.inputs[before], ports.outputs[after]
    if not compatible(i, o):
        raise ExportError(f"--state {before}:{after} cannot be: {i} and {o} differ in shape or type")


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
