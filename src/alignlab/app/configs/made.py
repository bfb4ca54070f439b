"""Objects out of config nodes, with the class's own words where it refuses."""

from typing import Any

from alignlab.errors import AlignlabError, ConfigError


def make(node: Any, at: str) -> Any:
    """The object that the config node at path `at` describes. ConfigError, or the class's own error, if it refuses."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, AlignlabError):
            raise cause from None
        raise ConfigError(f"{at}: {type(cause).__name__}: {cause}" if cause is not None else f"{at}: {error}") from None
