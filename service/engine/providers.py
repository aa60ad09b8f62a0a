"""Which execution provider runs: the user's wish held against what this machine can really load."""

from collections.abc import Mapping

from service.engine import ort
from service.errors import SettingsError
from service.settings import Settings

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def session_options(settings: Settings) -> ort.SessionOptions:
    """Options of every ONNX Runtime session of the service."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    # Spinning burns a core between ticks; memory patterns assume one shape, and ours vary from tick to tick.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # what fails comes as an exception, which is told in our own words
    return options


def open_session(
    model: bytes | str, settings: Settings, entries: Mapping[str, str] | None = None
) -> ort.InferenceSession:
    """An ONNX Runtime session on the provider that the settings ask for.

    ONNX Runtime falls back to the CPU without a word where CUDA cannot be loaded: ``cuda`` then is a SettingsError
    with the reason, ``auto`` what runs stands in the log. ``entries`` are further entries of its configuration.
    """
    options = session_options(settings)
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    if settings.provider == "cpu":
        return ort.InferenceSession(model, options, providers=[CPU])
    reason = _why_not_cuda()
    if reason is None:
        session = ort.InferenceSession(model, options, providers=[CUDA, CPU])
        if running_provider(session) == "cuda":
            return session
        reason = "ONNX Runtime could not load CUDA (its own message on standard error says why)"
    if settings.provider == "cuda":
        raise SettingsError(f"provider=cuda cannot be used: {reason}", field="provider")
    return ort.InferenceSession(model, options, providers=[CPU])


def running_provider(session: ort.InferenceSession) -> str:
    """``cuda`` or ``cpu``: the provider that the session really has first in line."""
    return "cuda" if session.get_providers()[0] == CUDA else "cpu"


def _why_not_cuda() -> str | None:
    if CUDA not in ort.available_providers():
        return "this build of ONNX Runtime has no CUDA (install the extra 'gpu')"
    return None
