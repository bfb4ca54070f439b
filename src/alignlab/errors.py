"""What a user sees when something is wrong: where, what came, what is allowed, what to do.

Every class carries the exit code that the command ends with (0 ok, 1 a job failed, 2 usage or config,
3 a missing extra or hardware). `assert` is for our own invariants, these are for everybody else's input.
"""


class AlignlabError(Exception):
    """Root of all errors that are meant for a user: printed as one line, without a traceback."""

    exit_code = 1


class ConfigError(AlignlabError, ValueError):
    """A setting, an option or a combination that cannot work."""

    exit_code = 2


class DataError(AlignlabError, ValueError):
    """A row, a file or a data set that is not what its format says. `str(e)` names file, line and field."""


class ModelError(AlignlabError, ValueError):
    """Weights, an adapter or a tokenizer that do not fit together."""


class RunFailed(AlignlabError, RuntimeError):
    """A target could not be built; the message names the run folder and its log."""


class NonFiniteError(AlignlabError, ArithmeticError):
    """A loss or a gradient is NaN or infinite; training stops before the weights are touched."""


class MissingExtraError(AlignlabError, ImportError):
    """A package that is optional is not installed; the message says which extra has it."""

    exit_code = 3


class HardwareError(AlignlabError, RuntimeError):
    """The machine lacks what `hardware=...` asks for."""

    exit_code = 3


class EndpointError(AlignlabError, RuntimeError):
    """A server that refuses, does not answer, or answers in another language than was expected."""
