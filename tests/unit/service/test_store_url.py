"""Where sessions are kept, as it is written: every form is read, and what is wrong is told without a password."""

import pytest

from service.errors import SettingsError
from service.settings import load_settings
from service.store_url import StoreUrl, parse

FORMS = {
    "sqlite:data/a.db": StoreUrl("sqlite", "data/a.db"),
    "redis://here": StoreUrl("single", nodes=(("here", 6379),)),
    "redis://here:1/2": StoreUrl("single", nodes=(("here", 1),), db=2),
    "redis://[::1]:7/": StoreUrl("single", nodes=(("::1", 7),)),
    "rediss://me:p%40ss@here": StoreUrl("single", nodes=(("here", 6379),), tls=True, user="me", password="p@ss"),
    "redis://:secret@here": StoreUrl("single", nodes=(("here", 6379),), password="secret"),
    "valkey://here": StoreUrl("single", nodes=(("here", 6379),)),
    "valkeys://here": StoreUrl("single", nodes=(("here", 6379),), tls=True),
    "redis+sentinel://a,b:1/main/3": StoreUrl("sentinel", nodes=(("a", 26379), ("b", 1)), service="main", db=3),
    "redis+cluster://a,b:1": StoreUrl("cluster", nodes=(("a", 6379), ("b", 1))),
    "valkeys+cluster://a": StoreUrl("cluster", nodes=(("a", 6379),), tls=True),
}
WRONG = {
    "redis://": "none of",
    "redis+what://:secret@a": "none of",
    "redis://:sec@ret@a": "none of",
    "redis://:sec/ret@a": "none of",
    "redis://a?password=x": "none of",
    "redis://:secret@a,b": "several servers",
    "redis+sentinel://:secret@a": "service",
    "redis+sentinel://:secret@a/main/x": "database is a number",
    "redis+cluster://:secret@a/1": "no databases",
    "redis://:secret@a/x": "database is a number",
    "redis://:secret@a:0": "'a:0' is not",
    "redis://:secret@a:65536": "'a:65536' is not",
    "redis://:secret@a b": "'a b' is not",
    "redis://a..b": "'a..b' is not",
    f"redis://{'a' * 64}": "is not HOST",
    "redis:/:secret@a": "none of",
    "redis:user:secret@a": "none of",
    "redis//:secret@a": "none of",
    "redis://:sec\nret@a b": "'a b' is not",
}


@pytest.mark.parametrize("text", FORMS)
def test_every_form_is_read(text: str) -> None:
    """Ports and databases have the usual defaults; a user and a password may be escaped."""
    assert parse(text) == FORMS[text]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_without_a_password(text: str) -> None:
    """One sentence says what was expected; whatever stands before the last @ is nobody's business."""
    with pytest.raises(SettingsError, match=WRONG[text]) as refused:
        load_settings(store=text)
    told = f"{refused.value.detail} {refused.value.__cause__}"
    assert not any(part in told for part in ("secret", "sec@", "sec/", "ret"))


def test_a_password_is_not_shown() -> None:
    """Neither the settings nor a place show it when they are printed."""
    settings = load_settings(store="redis://me:secret@here")
    assert "secret" not in f"{settings!r} {settings} {parse(settings.store)!r}"
