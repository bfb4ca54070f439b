"""PPO's inside: the first ratio is 1, what is outside a reply counts for nothing, whitening is over counted tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.batches import IGNORE
from alignlab.errors import NonFiniteError
from alignlab.kernels.masked import masked_whiten
from alignlab.losses.base import LossOutput
from alignlab.methods.experience import minibatches
from alignlab.methods.ppo import PPO
from alignlab.models.backbone import body_of
from alignlab.models.critic import Critic
from tests.methods.setting import PROMPT_ROW, fit, letter_reward, lora, make_data, make_method


def rollout_of(method: PPO, step: int = 0):
    batch = make_data(PROMPT_ROW).train_batch(step)
    return batch, method.sample(batch, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_first_ratio_is_one(temperature: float, critic: str):
    method = make_method("ppo", temperature=temperature, critic=critic)
    batch, rollout = rollout_of(method)
    experience, metrics = method.collect(rollout, batch.rows)
    for minibatch in minibatches(experience, 3, torch.Generator().manual_seed(0)):
        with torch.no_grad():
            out = method.policy(minibatch.sequences, temperature=temperature)
        ratio = (out.logprobs - minibatch.logprobs)[minibatch.mask].exp()
        assert float((ratio - 1).abs().max()) < 1e-5
    assert float(metrics["sampler_gap"]) < 1e-5


def test_policy_equals_reference_at_the_start_so_the_kl_is_zero():
    for adapter in (None, lora()):
        method = make_method("ppo", adapter=adapter)
        batch, rollout = rollout_of(method)
        _, metrics = method.collect(rollout, batch.rows)
        assert float(metrics["kl"]) == pytest.approx(0.0, abs=1e-5)


def test_values_start_at_zero_and_advantages_are_the_whitened_score_to_go():
    method = make_method("ppo", whiten_advantages=False, gae_lambda=1.0)
    batch, rollout = rollout_of(method)
    experience, _ = method.collect(rollout, batch.rows)
    assert experience.values.abs().max() == 0
    scores = letter_reward(rollout.prompts, rollout.responses)
    expected = scores[:, None].expand_as(experience.mask) * experience.mask
    torch.testing.assert_close(experience.advantages, expected)
    torch.testing.assert_close(experience.returns, expected)


def test_whitening_is_over_counted_tokens_and_equals_the_kernel():
    method = make_method("ppo")
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    x = torch.tensor([[1.0, 2.0, 99.0, 99.0], [3.0, 4.0, 7.0, 99.0]])
    white = method._whiten(torch.where(mask, x, 0.0), mask)
    torch.testing.assert_close(white, masked_whiten(x, mask) * mask, rtol=1e-5, atol=1e-5)
    assert float(white[mask].mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(white[mask].std()) == pytest.approx(1.0, abs=1e-5)


def test_what_stands_after_a_reply_changes_nothing():
    method = make_method("ppo")
    batch, rollout = rollout_of(method)
    assert (~rollout.sequences.attention_mask).any()
    ids = rollout.sequences.input_ids.clone()
    ids[~rollout.sequences.attention_mask] = 7
    other = rollout._replace(sequences=rollout.sequences._replace(input_ids=ids))
    a, _ = method.collect(rollout, batch.rows)
    b, _ = method.collect(other, batch.rows)
    torch.testing.assert_close(a.advantages, b.advantages)
    loss_a, loss_b = method.compute(a).loss, method.compute(b).loss
    torch.testing.assert_close(loss_a, loss_b)


def test_only_reply_tokens_are_trained_and_the_stop_token_is_one():
    method = make_method("ppo")
    _, rollout = rollout_of(method)
    labels = rollout.sequences.labels
    for row, complete in enumerate(rollout.complete.tolist()):
        scored = labels[row][labels[row] != IGNORE]
        assert (scored[-1] == 2) == complete
        assert (scored[:-1] != 2).all()
    assert (labels != IGNORE).sum(-1).max() <= method.max_new_tokens


def test_a_penalty_for_replies_that_never_end():
    plain, strict = make_method("ppo"), make_method("ppo", missing_eos_penalty=1.5)
    _, rollout = rollout_of(plain)
    difference = plain.score(rollout) - strict.score(rollout)
    torch.testing.assert_close(difference, 1.5 * (~rollout.complete).float())


def test_samples_depend_on_seed_and_iteration_alone():
    method = make_method("ppo")
    batch = make_data(PROMPT_ROW).train_batch(0)
    state = torch.get_rng_state()
    first = method.sample(batch, method._generator("sample"))
    torch.manual_seed(5)
    again = method.sample(batch, method._generator("sample"))
    assert first.responses == again.responses
    method.completed_steps = 1
    assert method.sample(batch, method._generator("sample")).responses != first.responses
    torch.set_rng_state(state)


def test_a_separate_critic_is_trained_and_shares_no_weight_with_the_policy():
    method = make_method("ppo", critic="separate")
    assert isinstance(method.critic, Critic)
    shared = {p.data_ptr() for p in method.policy.parameters()} & {p.data_ptr() for p in method.critic.parameters()}
    assert not shared
    assert len(method.trained_parameters()) == len(list(method.policy.parameters())) + len(
        list(method.critic.parameters())
    )


def test_beside_an_adapter_a_separate_critic_has_its_own_and_shares_what_is_frozen():
    method: Any = make_method("ppo", critic="separate", adapter=lora())
    ours, critics = (
        {p.data_ptr(): p.requires_grad for p in part.parameters()}
        for part in (body_of(method.policy.model), method.critic.body)
    )
    assert set(ours) & set(critics) == {place for place, is_trained in ours.items() if not is_trained}
    assert sum(critics.values()) == sum(ours.values()) > 0
    batch, rollout = rollout_of(method)
    experience, _ = method.collect(rollout, batch.rows)
    with torch.no_grad():  # a critic that moves leaves policy and reference where they were
        for parameter in method.critic.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    again, _ = method.collect(rollout, batch.rows)
    assert not torch.equal(again.values, experience.values)
    torch.testing.assert_close(again.logprobs, experience.logprobs, rtol=0, atol=0)


def test_a_single_score_moves_the_right_log_probs_up():
    """One update raises the log-probs of the replies that scored above the mean and lowers those below."""
    method = make_method("ppo", whiten_advantages=True)
    batch, rollout = rollout_of(method)
    experience, _ = method.collect(rollout, batch.rows)
    optimizer = torch.optim.SGD(method.policy.parameters(), lr=1e-3)
    method.compute(experience).loss.backward()
    optimizer.step()
    after = method.policy(experience.sequences).logprobs
    gain = ((after - experience.logprobs) * experience.advantages * experience.mask).sum()
    assert float(gain.detach()) > 0


def gradients_of(method: PPO) -> dict[str, torch.Tensor]:
    """By name, taken away."""
    found = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_terms_one_by_one_have_the_gradients_of_their_sum(critic: str):
    method = make_method("ppo", critic=critic)
    batch, rollout = rollout_of(method)
    experience, _ = method.collect(rollout, batch.rows)
    total, metrics = method.compute(experience)
    total.backward()
    expected = gradients_of(method)
    terms = []
    for term in method.terms(experience):
        if terms:  # the policy is done with before the critic runs
            assert all(weight.grad is not None for weight in method.policy.parameters())
        term.loss.backward()
        terms.append(term)
    assert len(terms) == {"shared": 1, "separate": 2}[critic]
    found = gradients_of(method)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert float(sum(term.loss.detach() for term in terms)) == pytest.approx(float(total.detach()), rel=1e-6)
    assert {name for term in terms for name in term.metrics} == set(metrics) >= {"policy_loss", "value_loss"}
    by_hand = metrics["policy_loss"] + method.value_coefficient * metrics["value_loss"]
    torch.testing.assert_close(total.detach(), by_hand)


@pytest.mark.parametrize("name", ["policy_loss", "value_loss"])
def test_a_term_that_is_not_finite_names_its_rows_whichever_it_is(name: str, tmp_path: Path):
    """Policy and critic have no weight in common, so the one's loss says nothing of the other's."""

    class Spoilt(torch.nn.Module):
        entropy_coefficient = 0.0

        def __init__(self, loss: torch.nn.Module) -> None:
            super().__init__()
            self.loss = loss

        def forward(self, *arguments: Any, **named: Any) -> LossOutput:
            loss, metrics = self.loss(*arguments, **named)
            return LossOutput(loss + float("inf"), metrics)

    method = make_method("ppo", critic="separate")
    setattr(method, name, Spoilt(getattr(method, name)))
    with pytest.raises(NonFiniteError, match="the loss is not finite on data rows"):
        fit(method, tmp_path)


def test_a_loss_of_ones_own_is_all_of_the_loss():
    """Who overrides `compute` need not know that PPO goes backward through its two networks one after the other."""

    class Half(PPO):
        def compute(self, batch: Any) -> LossOutput:
            loss, metrics = super().compute(batch)
            return LossOutput(loss / 2, metrics)

    method = make_method("ppo", critic="separate")
    batch, rollout = rollout_of(method)
    experience, _ = method.collect(rollout, batch.rows)
    whole = method.compute(experience).loss
    method.__class__ = Half
    [term] = method.terms(experience)
    torch.testing.assert_close(term.loss, whole / 2)

    class Halving:
        """What a mixin says, which is no `Method` itself, holds likewise."""

        def compute(self, batch: Any) -> LossOutput:
            loss, metrics = super().compute(batch)  # type: ignore[misc]
            return LossOutput(loss / 2, metrics)

    class Mixed(Halving, PPO):
        pass

    method.__class__ = Mixed
    [term] = method.terms(experience)
    torch.testing.assert_close(term.loss, whole / 2)


def test_the_kl_that_steers_the_step_size_is_measured_after_the_updates():
    method = make_method("ppo")
    batch, rollout = rollout_of(method)
    experience, _ = method.collect(rollout, batch.rows)
    assert float(method.update_kl(experience)) == pytest.approx(0.0, abs=1e-9)
    with torch.no_grad():
        for weight in method.policy.parameters():
            weight.mul_(1.02)
        new = method.policy(experience.sequences).logprobs
    ratio = (new - experience.logprobs)[experience.mask].double()
    by_hand = (ratio.exp() - 1 - ratio).mean()
    assert float(method.update_kl(experience)) == pytest.approx(float(by_hand), rel=1e-4)
    assert float(by_hand) > 1e-6
