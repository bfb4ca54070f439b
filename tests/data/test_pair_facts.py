"""What is known of pairs beside their tokens, from a file to an evaluation."""

import json

import numpy as np
import pytest

from alignlab.data.formats import rmbench
from alignlab.data.sources import Files
from alignlab.errors import DataError
from alignlab.rows import PairFacts, PreferenceRow, SFTRow
from tests.data.test_module import Rows, module, pairs


def test_facts_have_lengths_in_characters_whatever_was_cut_off():
    rows = [PreferenceRow("n0:", " yes", " no", subset="a", styles=(1, 0)), PreferenceRow("n0:", " h" * 90, " ok")]
    facts = module(Rows([], test=rows)).test_rows.pair_facts()
    assert facts[0] == PairFacts(facts[1].prompt, 4, 3, "a", (1, 0))
    assert facts[1][1:] == (180, 3, None, None)
    turned = [PreferenceRow("n0:", " yes", " no", 0.4, 2.0, "a", (1, 0))]  # likelier the other way round
    assert module(Rows([], test=turned)).test_rows.pair_facts()[0][1:] == (3, 4, "a", (0, 1))


def test_facts_stay_with_their_rows_where_some_are_held_out():
    rows = [PreferenceRow(f"n{i}:", " h" * (i + 1), " no", subset=f"part {i}") for i in range(8)]
    data = module(Rows(rows), validation_fraction=0.5)
    for split in (data.train_rows, data.validation_rows):
        known = [(int(fact.chosen_length / 2) - 1, fact.subset) for fact in split.pair_facts()]
        assert known and all(subset == f"part {i}" for i, subset in known)
        assert [int(prompt[1:-1]) for prompt in split.prompts] == [i for i, _ in known]


def test_facts_are_in_no_digest_and_other_rows_have_none():
    plain = module(Rows(pairs(3))).train_rows
    named = module(Rows([PreferenceRow(r.prompt, r.chosen, r.rejected, subset="a") for r in pairs(3)])).train_rows
    assert plain.digest() == named.digest() and plain.pair_facts() != named.pair_facts()
    assert plain.take(np.array([1])).pair_facts() == plain.pair_facts()[1:2]
    with pytest.raises(DataError, match="SFTRow rows have no facts of pairs"):
        module(Rows(pairs(3)), SFTRow).train_rows.pair_facts()


def test_a_record_may_hold_several_pairs_and_is_refused_whole(tmp_path):
    good = {"prompt": "Why?", "domain": "chat", "chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"]}
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"rejected": ["x", "y", "c"]}) + "\n")
    source = Files(test=path, format=rmbench.pairs)
    with pytest.raises(DataError, match=r"test\.jsonl:2: fields 'chosen' and 'rejected': identical"):
        list(source.rows(PreferenceRow, "test"))
    data = module(source, on_bad_row="skip")
    assert len(data.test_rows) == 9 and len(data.bad_rows) == 1
    assert [fact.styles for fact in data.test_rows.pair_facts()][:4] == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_an_empty_subset_is_refused():
    with pytest.raises(DataError, match="field 'subset': empty"):
        module(Rows([PreferenceRow("n0:", " yes", " no", subset=" ")])).prepare()
