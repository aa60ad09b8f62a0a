"""Stop strings: the text ends before them, and no part of one is shown."""

from hypothesis import given
from hypothesis import strategies as st

from service.sessions.generation import StopText

LETTERS = ("a", "b", "c")
TEXTS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def shown(text: str, stop: list[str]) -> tuple[list[str], bool, int]:
    """What is shown after each symbol (the rest at the end), whether it stopped, and after how many symbols."""
    decoder = StopText(LETTERS, tuple(stop))
    parts: list[str] = []
    for n, symbol in enumerate(text, 1):
        parts.append(decoder.add(LETTERS.index(symbol)))
        if decoder.stopped:
            return parts, True, n
    return [*parts, decoder.rest()], False, len(text)


@given(TEXTS, STOPS)
def test_the_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    """It ends as soon as any stop string is complete, and everything before that one is shown, once and in order."""
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(s) for s in stop)]
    parts, stopped, symbols = shown(text, stop)
    if not ends:
        assert ("".join(parts), stopped) == (text, False)
        return
    begins = min(text.find(s) for s in stop if s in text[: ends[0]])
    assert ("".join(parts), stopped, symbols) == (text[:begins], True, ends[0])


@given(TEXTS, STOPS)
def test_no_beginning_of_a_stop_string_is_shown_while_it_may_become_one(text: str, stop: list[str]) -> None:
    """What has been shown at any time never ends within what turns out to be a stop string."""
    parts, stopped, _ = shown(text, stop)
    if not stopped:
        parts = parts[:-1]
    told = ""
    for n, part in enumerate(parts, 1):
        told += part
        held = text[len(told) : n]
        assert stopped or any(s.startswith(held) for s in stop) or not held


def test_symbols_may_be_longer_than_one_character() -> None:
    """A stop string may begin within one symbol and end within another; what lies before it is shown."""
    decoder = StopText(("Hel", "lo wor", "ld"), ("lo", "!"))
    assert [decoder.add(0), decoder.add(1)] == ["He", "l"]
    assert decoder.stopped
    assert decoder.rest() == ""
