"""Settings: each wrong one stops the start with one sentence that names it."""

from pathlib import Path

import pytest

from service.errors import SettingsError
from service.settings import Settings, load_settings

WRONG: list[tuple[dict[str, object], str]] = [
    ({"port": -1}, "port"),
    ({"port": 65536}, "port"),
    ({"port": "http"}, "port"),
    ({"durability": "disk"}, "durability"),
    ({"provider": "tpu"}, "provider"),
    ({"tune": "perhaps"}, "tune"),
    ({"overlap": "always"}, "overlap"),
    ({"resident_mb": -1}, "resident_mb"),
    ({"resident_mb": 2**20 + 1}, "resident_mb"),
    ({"threads": 0}, "threads"),
    ({"threads": 257}, "threads"),
    ({"max_batch": 0}, "max_batch"),
    ({"max_batch": 5000}, "max_batch"),
    ({"inline_ms": -1}, "inline_ms"),
    ({"inline_ms": 1001}, "inline_ms"),
    ({"inline_ms": "nan"}, "inline_ms"),
    ({"lone_segment_ms": -1}, "lone_segment_ms"),
    ({"lone_segment_ms": 1001}, "lone_segment_ms"),
    ({"lone_segment_ms": "nan"}, "lone_segment_ms"),
    ({"max_cells": 0}, "max_cells"),
    ({"max_cells": 2**24 + 1}, "max_cells"),
    ({"segment_steps": 0}, "segment_steps"),
    ({"segment_steps": 5000}, "segment_steps"),
    ({"allow_inexact": "perhaps"}, "allow_inexact"),
    ({"max_queue": 0}, "max_queue"),
    ({"max_session_queue": 0}, "max_session_queue"),
    ({"queue_timeout_s": 0}, "queue_timeout_s"),
    ({"max_body_bytes": 10}, "max_body_bytes"),
    ({"max_steps": 0}, "max_steps"),
    ({"max_gates": 0}, "max_gates"),
    ({"max_gates": 4097}, "max_gates"),
    ({"max_sequences": 0}, "max_sequences"),
    ({"max_live": 0}, "max_live"),
    ({"default_ttl_s": 0}, "default_ttl_s"),
    ({"max_ttl_s": -5}, "max_ttl_s"),
    ({"tombstone_s": -1}, "tombstone_s"),
    ({"sweep_interval_s": 0}, "sweep_interval_s"),
    ({"keep_answer_bytes": -1}, "keep_answer_bytes"),
    ({"drain_s": -1}, "drain_s"),
    ({"log_level": "loud"}, "log_level"),
    ({"default_ttl_s": 20, "max_ttl_s": 10}, "default_ttl_s"),
    ({"store": "mysql:here"}, "store"),
    ({"store": "sqlite:"}, "store"),
    ({"store": "sessions.db"}, "store"),
    ({"store": "sqlite::memory:"}, "durability memory"),
    ({"store": "sqlite:file:x?mode=memory"}, "no plain file"),
    ({"store": "redis+cluster://here/1"}, "no databases"),
    ({"store_replicas": -1}, "store_replicas"),
    ({"store_replicas": 17}, "store_replicas"),
    ({"store_replicas": 2}, "not for sqlite"),
    ({"queue_timeout_s": 3601}, "queue_timeout_s"),
    ({"default_ttl_s": 4e8, "max_ttl_s": 4e8}, "default_ttl_s"),
    ({"max_ttl_s": 4e8}, "max_ttl_s"),
    ({"tombstone_s": 4e8}, "tombstone_s"),
    ({"sweep_interval_s": 3601}, "sweep_interval_s"),
    ({"drain_s": 3601}, "drain_s"),
    ({"lame_duck_s": -1}, "lame_duck_s"),
    ({"lame_duck_s": 3601}, "lame_duck_s"),
    ({"http_workers": 65}, "http_workers"),
]


@pytest.mark.parametrize(("chosen", "name"), WRONG, ids=str)
def test_a_wrong_setting_is_named_in_one_sentence(chosen: dict[str, object], name: str) -> None:
    """Whoever starts the service learns which setting is wrong, and why, without a traceback's worth of text."""
    with pytest.raises(SettingsError) as refused:
        load_settings(**chosen)
    assert name in refused.value.detail.replace("-", "_") or name in refused.value.detail
    assert "\n" not in refused.value.detail
    assert str(next(iter(chosen.values()))) in refused.value.detail


FLOATS = [name for name, field in Settings.model_fields.items() if field.annotation is float]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_duration_is_a_number(name: str, value: str) -> None:
    """NaN and infinity pass every comparison or none, and no timer can be set to them."""
    with pytest.raises(SettingsError, match=name.replace("_", "-")):
        load_settings(**{name: value})


def test_every_bound_is_tried() -> None:
    """No setting with a bound is missing from the list of wrong ones."""
    tried = {name for chosen, _ in WRONG for name in chosen}
    free = {"model_repository", "host"}
    assert tried | free == set(Settings.model_fields)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting is an environment variable with a prefix; what is chosen on the command line wins."""
    monkeypatch.setenv("LSTM_SERVE_MAX_BATCH", "7")
    monkeypatch.setenv("LSTM_SERVE_PORT", "9000")
    monkeypatch.setenv("LSTM_SERVE_MODEL_REPOSITORY", "/models")
    monkeypatch.setenv("MAX_QUEUE", "1")
    settings = load_settings(port=9001)
    assert (settings.max_batch, settings.port) == (7, 9001)
    assert settings.model_repository == Path("/models")
    assert settings.max_queue == 4096


def test_a_wrong_variable_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is held to the same bounds."""
    monkeypatch.setenv("LSTM_SERVE_THREADS", "many")
    with pytest.raises(SettingsError, match=r"^LSTM_SERVE_THREADS is 'many', and has to be a whole number$"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("http_workers", "65", "--http-workers is '65', and has to be 64 or less"),
        ("queue_timeout_s", "0", "--queue-timeout-s is '0', and has to be more than 0"),
        ("inline_ms", "inf", "--inline-ms is 'inf', and has to be a finite number"),
        ("tune", "perhaps", "--tune is 'perhaps', and has to be true or false"),
        ("durability", "disk", "--durability is 'disk', and has to be 'memory', 'commit' or 'fsync'"),
        ("threads", "1.5", "--threads is '1.5', and has to be a whole number"),
    ],
)
def test_an_option_is_named_as_it_was_written(name: str, value: str, sentence: str) -> None:
    """In plain words, and with what it has to be."""
    with pytest.raises(SettingsError) as refused:
        load_settings(**{name: value})
    assert refused.value.detail == sentence
    assert refused.value.field == name


def test_settings_cannot_be_changed() -> None:
    """What the service was started with is what runs."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1


def test_every_setting_has_its_sentence() -> None:
    """Help and README are made of the descriptions, and durations carry their unit in the name."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if "seconds" in field.description and "second " not in field.description:
            assert name.endswith("_s"), name


def test_a_misspelled_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that would be ignored in silence stops the start, with what was probably meant."""
    monkeypatch.setenv("LSTM_SERVE_MAXBATCH", "8")
    with pytest.raises(SettingsError, match="no setting LSTM_SERVE_MAXBATCH; did you mean LSTM_SERVE_MAX_BATCH"):
        load_settings()
