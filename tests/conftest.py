"""What holds for all tests: hypothesis tries the same examples on every run and keeps no time on a busy machine."""

from hypothesis import settings

settings.register_profile("lstm-serve", deadline=None, derandomize=True, database=None)
settings.load_profile("lstm-serve")
