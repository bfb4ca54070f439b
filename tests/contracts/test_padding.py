"""The padding contract sees what no loss alone can show: a collator, positions, a mask or a length that is wrong."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from alignlab.batches import Sequences
from alignlab.contracts import check, pipeline
from alignlab.contracts.finding import Violation
from alignlab.contracts.networks import VOCAB_SIZE, tiny_networks
from alignlab.data.collate import collate
from alignlab.losses.preference import DPOLoss, SimPOLoss
from alignlab.losses.sft import SFTLoss
from alignlab.methods.dpo import pair_logprobs
from alignlab.models import backbone
from alignlab.models.backbone import body_states
from alignlab.rows import SFTRow

BETA = 0.3


KINDS = ("learned", "rotary")


def broken(loss: nn.Module) -> list[Violation]:
    [outcome] = [outcome for outcome in check(loss) if outcome.contract == "padding"]
    return outcome.violations


def padding_breaks(loss: nn.Module) -> list[str]:
    return [violation.what for violation in broken(loss)]


def test_padding_that_is_scored_is_caught(monkeypatch: pytest.MonkeyPatch):
    def scored(rows, index, *, pad_id):
        batch: Any = collate(rows, index, pad_id=pad_id)
        ids, mask, labels = batch.sequences
        return batch._replace(sequences=Sequences(ids, mask, torch.where(mask, labels, ids)))

    monkeypatch.setattr(pipeline, "collate", scored)
    assert any("without longer batch-mates" in what for what in padding_breaks(DPOLoss(BETA)))
    assert any("without longer batch-mates" in what for what in padding_breaks(SFTLoss()))


def test_positions_that_count_padding_are_caught_where_they_are_learned(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backbone, "positions_of", lambda mask: torch.arange(mask.shape[1]).expand(mask.shape))
    by_kind = {violation.what: violation.amount for violation in broken(DPOLoss(BETA))}
    assert set(by_kind) == {f"padded on the left ({kind} positions): loss or gradient changes by" for kind in KINDS}
    learned, rotary = (by_kind[f"padded on the left ({kind} positions): loss or gradient changes by"] for kind in KINDS)
    assert learned > 0.1 and rotary < 1e-4  # rotary ones are relative, and only rounded otherwise


def test_a_forgotten_attention_mask_is_caught(monkeypatch: pytest.MonkeyPatch):
    def blind(body, ids, mask):
        return body_states(body, ids, torch.ones_like(mask))

    monkeypatch.setattr("alignlab.models.packing.body_states", blind)
    assert any(what.startswith("padded on the left") for what in padding_breaks(DPOLoss(BETA)))


def test_a_length_counted_with_padding_is_caught(monkeypatch: pytest.MonkeyPatch):
    def counted(logprobs, mask):
        return pair_logprobs(logprobs, torch.ones_like(mask))

    monkeypatch.setattr(pipeline, "pair_logprobs", counted)
    assert padding_breaks(SimPOLoss(2.0, gamma=0.5)) != []
    assert padding_breaks(DPOLoss(BETA)) == []  # which reads no length


def test_the_networks_are_peaky_so_that_a_wrong_token_is_seen():
    for positions in ("gpt2", "llama"):
        batch: Any = collate(pipeline.encoded(SFTRow), range(4), pad_id=0)
        out = tiny_networks(positions).policy(batch.sequences, entropy=True)
        assert 0.3 < (out.entropy.sum() / out.mask.sum()).item() / math.log(VOCAB_SIZE) < 0.9
        assert out.mask.sum(1).tolist() == [3, 7, 2, 12] and out.logprobs.dtype == torch.float64
