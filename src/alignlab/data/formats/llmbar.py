"""LLMBar (Zeng et al. 2023, arXiv:2310.07641): instructions with a reply that follows them and one that does not.

Both shapes are read: prompt, chosen and rejected; and the published one, input, output_1, output_2 and a label that
says which of the two is the better.
"""

from alignlab.data.checks import show
from alignlab.data.formats import fields
from alignlab.data.formats.fields import Record
from alignlab.errors import DataError
from alignlab.rows import PreferenceRow


def pair(record: Record, *, subset: str | None = None) -> PreferenceRow:
    """One pair; the prompt is one user turn. `subset` names a field (natural, adversarial-neighbor, ...)."""
    name = None if subset is None else fields.reply(record, subset)
    if "chosen" in record:
        prompt, chosen, rejected = "prompt", "chosen", "rejected"
    else:
        label = fields.get(record, "label")
        if isinstance(label, bool) or label not in (1, 2):
            raise DataError(f"field 'label': got {show(label)}, expected 1 or 2: which output is the better one")
        prompt, chosen, rejected = "input", f"output_{label}", f"output_{3 - label}"
    turns = fields.user(fields.reply(record, prompt))
    return PreferenceRow(turns, fields.reply(record, chosen), fields.reply(record, rejected), subset=name)
