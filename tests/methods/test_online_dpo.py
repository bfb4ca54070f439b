"""Online DPO: who is labelled the better one, that pairs stay together, and where it comes to rest."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.losses.preference import DPOLoss, SimPOLoss
from alignlab.methods.experience import minibatches, repeated
from alignlab.methods.online_dpo import LABELS, OnlineDPO
from alignlab.methods.optimization import AdamW
from tests.methods.closed_world import (
    LONGEST,
    REPLIES,
    all_logprobs,
    expected_gradient,
    move,
    rollout_of,
    world_policy,
    world_reward,
)
from tests.methods.setting import PROMPT_ROW, fit, letter_reward, make_data, make_method


def collected(method: Any, num_prompts: int = 6) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    batch = repeated(make_data(PROMPT_ROW, batch_size=num_prompts).train_batch(0), 2)
    rollout = method.sample(batch, torch.Generator().manual_seed(3))
    return rollout, *method.collect(rollout, batch.rows)


def test_labels_by_hand():
    """Score differences 2, -1 and 0; the coins fall at 0.8, 0.8 and 0.49."""
    gap, uniform = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([0.8, 0.8, 0.49])
    assert LABELS["best"](gap, uniform).tolist() == [1.0, 0.0, 0.5]
    soft = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1)), 0.5]  # 0.881, 0.269, 0.5
    assert LABELS["bradley_terry_soft"](gap, uniform).tolist() == pytest.approx(soft)
    assert LABELS["bradley_terry"](gap, uniform).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("labels", ["best", "bradley_terry_soft"])
def test_a_pair_is_two_replies_to_one_prompt_with_their_own_scores(labels: str):
    method = make_method("online_dpo", labels=labels)
    rollout, pairs, metrics = collected(method)
    scores = letter_reward(rollout.prompts, rollout.responses)
    gaps = [float(scores[2 * i] - scores[2 * i + 1]) for i in range(6)]
    say = {"best": lambda gap: (gap > 0) + 0.5 * (gap == 0), "bradley_terry_soft": lambda gap: 1 / (1 + math.exp(-gap))}
    assert pairs.preference.tolist() == pytest.approx([say[labels](gap) for gap in gaps])
    assert rollout.prompts[0] == rollout.prompts[1] != rollout.prompts[2]
    assert float(metrics["tie_rate"]) == pytest.approx(sum(gap == 0 for gap in gaps) / 6)
    assert float(metrics["score_gap"]) == pytest.approx(sum(map(abs, gaps)) / 6)
    assert 0 < sum(gap == 0 for gap in gaps) < 6
    for part in minibatches(pairs, 4, torch.Generator().manual_seed(0)):
        prompts, num_pairs = part.sequences.labels == -100, len(part.rows)
        for i, row in enumerate(part.rows.tolist()):
            at = pairs.rows.tolist().index(row)
            assert part.preference[i] == pairs.preference[at]
            for half in (0, 1):  # first replies, then second ones, each with its own reference
                mine, ids = half * num_pairs + i, part.sequences.input_ids
                theirs = rollout.sequences.input_ids[2 * at + half]
                mask = part.sequences.attention_mask[mine]
                assert ids[mine][mask].tolist() == theirs[rollout.sequences.attention_mask[2 * at + half]].tolist()
                assert part.ref_logprobs[mine] == pairs.ref_logprobs[half * 6 + at]
        assert prompts.any()


def test_the_loss_starts_at_log_two_and_prefers_what_scored_higher():
    method = make_method("online_dpo")
    rollout, pairs, _ = collected(method)
    output = method.compute(pairs)
    assert float(output.loss.detach()) == pytest.approx(math.log(2), abs=1e-5)
    output.loss.backward()
    torch.optim.SGD(method.policy.parameters(), lr=1e-2).step()
    with torch.no_grad():
        first, second = (method.policy(pairs.sequences).logprobs.sum(-1) - pairs.ref_logprobs).chunk(2)
    decided = pairs.preference != 0.5
    gain = (first - second) * (2 * pairs.preference - 1)
    assert float(gain[decided].sum()) > 0 and decided.any()
    assert len(rollout.responses) == 12


def test_reference_and_policy_are_read_at_the_temperature_that_was_sampled_at():
    method = make_method("online_dpo", temperature=0.7)
    rollout, pairs, metrics = collected(method)
    with torch.no_grad():
        out = method.policy(rollout.sequences, temperature=0.7).logprobs.sum(-1)
    torch.testing.assert_close(pairs.ref_logprobs, torch.cat([out[0::2], out[1::2]]), rtol=1e-4, atol=1e-4)
    assert float(method.compute(pairs).loss.detach()) == pytest.approx(math.log(2), abs=1e-5)
    assert float(metrics["kl"]) == pytest.approx(0.0, abs=1e-4)


def closed(beta: float, labels: Any) -> OnlineDPO:
    method = OnlineDPO(
        world_policy(),
        reward=world_reward,
        loss=DPOLoss(beta=beta),
        labels=labels,
        kl_coefficient=beta,
        lr=1e-3,
        optimizer=AdamW(),
        max_new_tokens=LONGEST,
    )
    move(method)
    return method


def test_it_rests_where_the_regularised_objective_is_largest(monkeypatch: pytest.MonkeyPatch):
    """With reward = beta log pi / ref + a constant, pi is the optimum; soft labels then leave no gradient at all.

    Hard labels do: the better reply is pushed up for ever.
    """
    beta = 0.4
    sizes = {}
    for labels in ("bradley_terry_soft", "best"):
        method = closed(beta, labels)
        logprobs, reference = (x.detach() for x in all_logprobs(method))
        rewards = beta * (logprobs - reference) + 3.0
        monkeypatch.setattr(
            method, "score", lambda rollout, r=rewards: torch.stack([r[number(name)] for name in rollout.responses])
        )
        sizes[labels] = float(expected_gradient(method, 2).norm())
    assert sizes["bradley_terry_soft"] < 1e-12 and sizes["best"] > 1e-2


def test_sampled_labels_have_the_gradient_of_soft_ones_on_average():
    """The loss is linear in the label: p times that of one label and 1 - p times that of the other."""
    method = closed(0.4, "bradley_terry_soft")
    pairs, _ = method.collect(rollout_of([3, 1]), torch.zeros(2, dtype=torch.long))
    p = pairs.preference
    first, second = (method.compute(pairs._replace(preference=torch.full_like(p, x))).loss for x in (1.0, 0.0))
    torch.testing.assert_close(method.compute(pairs).loss, (p * first + (1 - p) * second)[0])
    assert float(p) == pytest.approx(1 / (1 + math.exp(-3.0)))  # rewards 2 and -1


def test_equal_replies_teach_nothing():
    method = closed(0.4, "best")
    pairs, metrics = method.collect(rollout_of([3, 3]), torch.zeros(2, dtype=torch.long))
    method.compute(pairs).loss.backward()
    assert pairs.preference.tolist() == [0.5] and float(metrics["tie_rate"]) == 1.0
    assert all(weight.grad.abs().max() < 1e-15 for weight in method.policy.parameters() if weight.grad is not None)


def test_coins_are_the_same_after_a_resume_and_others_at_the_next_step():
    method = make_method("online_dpo", labels="bradley_terry")
    labels = []
    for step in (0, 0, 1, 2):
        method.completed_steps = step
        labels.append(collected(method, num_prompts=24)[1].preference.tolist())
    assert labels[0] == labels[1] and (labels[2] != labels[0] or labels[3] != labels[0])
    assert set(labels[0]) == {0.0, 1.0}


def test_any_loss_of_single_pairs_will_do(tmp_path: Path):
    fit(make_method("online_dpo", loss=SimPOLoss(beta=2.0, gamma=0.5), max_steps=2, minibatch_size=2), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["train/updates"] == 3 and lines[0]["train/kl_coefficient"] == pytest.approx(0.1)


def test_a_loss_that_couples_pairs_is_refused():
    class Coupled(DPOLoss):
        batch_coupled = True

    with pytest.raises(ConfigError, match="Coupled couples the pairs"):
        make_method("online_dpo", loss=Coupled(beta=0.1))
    with pytest.raises(ConfigError, match="labels=worst"):
        make_method("online_dpo", labels="worst")


def number(name: str) -> int:
    """The number of a reply of the closed world."""
    return ["".join(map(str, reply)) for reply in REPLIES].index(name)
