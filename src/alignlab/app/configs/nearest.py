"""The name that was probably meant."""

import difflib
from collections.abc import Iterable


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The closest of `names`, or None where nothing is close."""
    found = difflib.get_close_matches(word, list(names), n=1, cutoff=0.55)
    return found[0] if found else None


def hint(word: str, names: Iterable[str], *, prefix: str = "", what: str = "there are") -> str:
    """The end of an error line: `; did you mean beta?`, or what there is, if that is short enough to read."""
    names = sorted(names)
    best = nearest(word, names)
    if best is not None:
        return f"; did you mean {prefix}{best}?"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; {what} {shown}"
