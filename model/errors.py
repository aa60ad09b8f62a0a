"""The errors that training tells its user. Owns their classes; knows nothing of files, columns or networks."""


class ModelError(Exception):
    """Something the user can put right, said in one sentence that names the file, row, column or option."""


class DataError(ModelError):
    """The training data cannot be used as it is."""


class CheckpointError(ModelError):
    """A checkpoint cannot be read, written or continued."""


class Interrupted(ModelError):
    """Training was stopped by a signal after its state had been saved; the sentence says how to go on.

    No failure: a command line ends with status 130, as after any Ctrl-C.
    """
