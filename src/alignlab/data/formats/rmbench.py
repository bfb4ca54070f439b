"""RM-Bench (Liu et al. 2024, arXiv:2410.16184): three chosen and three rejected replies to one prompt, by style.

The styles of a list are, in this order, concise, detailed in plain text, and detailed with markdown. All nine pairs are
compared: a right reply with less style than a wrong one is the hard case.
"""

from alignlab.data.checks import check_reply, show
from alignlab.data.formats import fields
from alignlab.data.formats.fields import Record
from alignlab.errors import DataError
from alignlab.rows import PreferenceRow, Row

STYLES = ("concise", "detailed", "markdown")
"""What the places of the lists are, the plainest first."""


def pairs(record: Record, *, subset: str | None = "domain") -> list[Row]:
    """Nine pairs, `styles` their places in the two lists; the prompt is one user turn. `subset` names a field."""
    prompt = fields.user(fields.reply(record, "prompt"))
    name = None if subset is None else fields.reply(record, subset)
    chosen, rejected = _replies(record, "chosen"), _replies(record, "rejected")
    return [
        PreferenceRow(prompt, good, bad, subset=name, styles=(i, j))
        for i, good in enumerate(chosen)
        for j, bad in enumerate(rejected)
    ]


def _replies(record: Record, field: str) -> list[str]:
    value = fields.get(record, field)
    if not isinstance(value, list) or len(value) != len(STYLES):
        raise DataError(f"field {field!r}: got {show(value)}, expected a list of {len(STYLES)}: {', '.join(STYLES)}")
    return [check_reply(reply, f"{field}[{i}]") for i, reply in enumerate(value)]
