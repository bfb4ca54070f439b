"""Forms that are written for speed, and whether the plain one is taken in their place: to test against, to measure by.

Like torch's number of threads it holds for the whole process; `hardware.plain` sets it when a run begins.
"""

from collections.abc import Iterable

from alignlab.errors import ConfigError

PLAIN_FORMS = {
    "adamw": "torch's loop over the weights instead of its fused kernel",
    "gae": "one step of time after the other instead of sums by doubling",
    "gelu": "transformers' gelu_new in eight operations instead of torch's in one",
    "room_for_gradient": "freed memory kept by the process when a large embedding's gradient is made",
    "tied_embedding": "two gradients of a matrix that both reads and writes tokens, added, instead of one",
}
_chosen: frozenset[str] = frozenset()


def choose_plain(names: Iterable[str]) -> None:
    """From now on these are plain and all others fast. ConfigError for a name that is not in PLAIN_FORMS."""
    global _chosen
    chosen = frozenset(map(str, names))  # of a number or a list, too, it can be said that it is none of them
    if unknown := sorted(chosen - set(PLAIN_FORMS)):
        raise ConfigError(f"hardware.plain: {', '.join(unknown)}: allowed are {', '.join(PLAIN_FORMS)}")
    _chosen = chosen


def is_plain(name: str) -> bool:
    """Whether the plain form is to be taken."""
    assert name in PLAIN_FORMS
    return name in _chosen
