"""What export and verify refuse, in one sentence each."""


class ExportError(Exception):
    """The base of every error that export tells its user; the message is the sentence."""
