"""Preference pairs from labelled texts: a text of the preferred label against one of the other label.

The n-th text of one label meets the n-th of the other, in the order of the files, so each text is in one pair at most
and the same files always give the same pairs. Of the label that has more texts, the last ones are left out.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from alignlab.data.checks import check_row, show
from alignlab.data.formats import fields
from alignlab.data.reading import Located
from alignlab.data.sources import Format, Hub, Where
from alignlab.errors import ConfigError, DataError
from alignlab.rows import PreferenceRow, SFTRow, Split, rows_as

Label = int | str


class Opposites(Hub):
    """Pairs without a prompt: `chosen` is a text of label `preferred`, `rejected` one of label `other`.

    A data set of the hub, or local files in place of its splits, as in `Hub`; `format` reads the text of a record and
    must leave the prompt empty, `label` names the field with the label. A record of a third label is a bad row.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str,
        preferred: Label,
        other: Label,
        label: str = "label",
        train: Where = None,
        validation: Where = None,
        test: Where = None,
        subset: str | None = None,
        folder: str | None = None,
        format: Format,
    ) -> None:
        """ConfigError if the two labels are one."""
        super().__init__(
            name,
            revision=revision,
            train=train,
            validation=validation,
            test=test,
            subset=subset,
            folder=folder,
            format=format,
        )
        if preferred == other:
            raise ConfigError(f"data.source.preferred={preferred}: the same as data.source.other; a pair needs both")
        self.label, self.preferred, self.other = label, preferred, other

    def located_rows(self, row_type: type[Any], split: Split) -> Iterator[Located]:
        """(where, row | DataError): a pair stands where its second text does."""
        waiting: deque[tuple[bool, str]] = deque()  # all of one label
        pairs = 0
        for where, record in (located for place in self.splits[split] for located in self._records(place)):
            try:
                is_preferred, text = self._read(record)
                if not waiting or waiting[0][0] == is_preferred:
                    waiting.append((is_preferred, text))
                    continue
                pairs += 1
                _, partner = waiting.popleft()
                chosen, rejected = (text, partner) if is_preferred else (partner, text)
                row = check_row(PreferenceRow("", chosen, rejected))
                served = [Located(where, each) for each in rows_as(row, row_type)]
            except DataError as error:
                served = [Located(where, error)]
            yield from served
        if waiting and not pairs:
            label = self.preferred if waiting[0][0] else self.other
            both = f"{self.preferred!r} and {self.other!r}"
            fault = DataError(f"field {self.label!r}: all {len(waiting)} texts have {label!r}, pairs need {both}")
            yield Located(f"the {split} split", fault)

    def _read(self, record: Mapping[str, Any] | DataError) -> tuple[bool, str]:
        """Whether a record has the preferred label, and its text."""
        if isinstance(record, DataError):
            raise record
        row = self.format(record)
        if not isinstance(row, SFTRow) or row.prompt:
            raise DataError("data.source.format: expected one text without a prompt a record; set prompt_words to 0")
        value = fields.get(record, self.label)
        for is_preferred, label in ((True, self.preferred), (False, self.other)):
            if not isinstance(value, bool) and value in (label, str(label)):  # csv spells numbers as text
                return is_preferred, row.response
        raise DataError(f"field {self.label!r}: got {show(value)}, expected {self.preferred!r} or {self.other!r}")
