"""A Python value as Hydra's override grammar writes it, so that any value can be handed up as `key=value`."""

import re
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./+-]*\Z")
_WORDS_WITH_A_MEANING = ("null", "true", "false", "nan", "inf")


def spell(value: Any) -> str:
    """The text that the override parser reads back as `value`: None, bool, number, str, list, dict of plain ones.

    Hydra's grammar cannot quote a key inside {...}: one that looks like a number is read back as a number.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(spell, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_key(k)}:{spell(v)}" for k, v in value.items()) + "}"
    return _text(str(value))


def flat(node: dict[str, Any], at: str = "") -> list[tuple[str, Any]]:
    """Leaves with dotted paths: {task: {of: train}} and {task.of: train} say the same. An empty dict is a leaf."""
    leaves: list[tuple[str, Any]] = []
    for key, value in node.items():
        path = f"{at}.{key}" if at else str(key)
        leaves += flat(value, path) if isinstance(value, dict) and value else [(path, value)]
    return leaves


def _key(key: Any) -> str:
    return key if isinstance(key, str) else spell(key)


def _text(text: str) -> str:
    if text.startswith("${") and text.endswith("}") and text.count("${") == 1:
        return text
    if _PLAIN.match(text) and text.lower() not in _WORDS_WITH_A_MEANING:
        return text
    # Backslashes count only before a quote: those, and the closing one's, are doubled.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    trailing = len(text) - len(text.rstrip("\\"))
    return "'" + escaped + "\\" * trailing + "'"
