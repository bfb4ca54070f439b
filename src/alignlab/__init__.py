"""alignlab: language models aligned with human preferences, and every number can be checked.

`compose` and `run` are the two calls that a script needs; both import their room only when called, so that
`import alignlab` stays instant.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "compose", "run"]

if TYPE_CHECKING:
    from alignlab.app.api import compose, run


def __getattr__(name: str) -> Any:
    if name in ("compose", "run"):
        from alignlab.app import api

        return getattr(api, name)
    raise AttributeError(f"module 'alignlab' has no attribute {name!r}")
