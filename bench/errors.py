"""The errors that the load generator tells its user. Owns their class; knows nothing of HTTP or of processes."""


class BenchError(Exception):
    """Something the user can put right, said in one sentence that names the option or the address."""
