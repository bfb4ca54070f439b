"""A loss taken inside the head, part by part, is the loss over the whole batch: values, metrics and gradients."""

from typing import Any

import pytest
import torch

from alignlab.batches import IGNORE
from alignlab.kernels import chunked_loss, head
from alignlab.losses.ordering import AOTLoss
from alignlab.losses.policy import PPOPolicyLoss
from alignlab.losses.preference import DPOLoss, PairLogprobs, PreferenceLoss
from alignlab.losses.sft_term import WithSFT
from alignlab.methods import parts
from alignlab.methods.experience import repeated
from tests.methods.setting import PROMPT_ROW, lora, make_data, make_method

CASES: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"loss": DPOLoss(beta=0.1, label_smoothing=0.1)},
    "dpo with a term": {"loss": WithSFT(DPOLoss(beta=0.1), 0.5)},
    "online_dpo": {},
    "ppo": {"policy_loss": PPOPolicyLoss(0.2, entropy_coefficient=0.02), "temperature": 0.8},
    "ppo separate": {"critic": "separate", "policy_loss": PPOPolicyLoss(0.2)},
    "rloo": {},
    "grpo": {},
}


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch):
    """Tiles of 9 rows, and 12 at most: many parts, some of them too long for a tile."""
    monkeypatch.setattr(chunked_loss, "tile_rows", lambda weight: 9)
    monkeypatch.setattr(chunked_loss, "whole_rows", lambda weight: 12)


def batch_for(method: Any, name: str) -> Any:
    """What `compute` is given: a batch of rows, or of experience that the policy has since moved away from."""
    data = make_data(method.row_type)
    batch = data.train_batch(0)
    if method.row_type is not PROMPT_ROW:
        if name.startswith("dpo"):
            generator = torch.Generator().manual_seed(4)
            soft, weight = (torch.rand(len(batch.rows), generator=generator) + 0.1 for _ in range(2))
            batch = batch._replace(preference=soft.clamp(max=1), weight=weight)
        return batch
    prompts = repeated(batch, method.group_size)
    rollout = method.sample(prompts, torch.Generator().manual_seed(3))
    return method.before_update(method.collect(rollout, prompts.rows)[0])


def moved(method: Any) -> None:
    """Weights that differ from the reference's and from those that sampled."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in method.trained_parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def outcome(method: Any, batch: Any, *, in_chunks: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    method.plan(seed=0, total_steps=1, loss_in_chunks=in_chunks)
    output = method.compute(batch)
    method.zero_grad()
    (0.5 * output.loss).backward()  # as a micro-batch's share
    gradients = [p.grad.flatten() for p in method.trained_parameters() if p.grad is not None]
    return output.loss.detach(), output.metrics, torch.cat(gradients)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("adapter", [None, lora()], ids=["full", "lora"])
@pytest.mark.parametrize("name", CASES)
def test_parts_add_up_to_the_whole(name: str, adapter: Any):
    method: Any = make_method(name.split()[0], adapter=adapter, **CASES[name])
    batch = batch_for(method, name)
    moved(method)
    assert len(parts.divided(batch, torch.empty(1, 1))[1]) > 2
    loss, metrics, gradient = outcome(method, batch, in_chunks=True)
    plain_loss, plain_metrics, plain_gradient = outcome(method, batch, in_chunks=False)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=1e-6)
    assert metrics.keys() == plain_metrics.keys()
    for key, value in plain_metrics.items():
        torch.testing.assert_close(metrics[key].float(), value.float(), rtol=1e-4, atol=1e-5, msg=key)
    assert gradient.abs().max() > 1e-4
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-3, atol=1e-6)


def test_a_batch_with_nothing_to_count_is_a_zero_with_zero_gradients():
    method: Any = make_method("sft")
    batch: Any = make_data(method.row_type).train_batch(0)
    nothing = batch.sequences._replace(labels=torch.full_like(batch.sequences.labels, IGNORE))
    loss, _, gradient = outcome(method, batch._replace(sequences=nothing), in_chunks=True)
    assert loss == 0 and len(gradient) > 0 and not gradient.any()


class Peculiar(PreferenceLoss):
    """Takes its batch by its worst pair, and forgot to say so."""

    def forward(self, policy: PairLogprobs, reference: PairLogprobs | None = None, **labels: Any) -> Any:
        return super().forward(policy, reference, **labels)

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> torch.Tensor:
        return policy.rejected - policy.chosen


@pytest.mark.parametrize("loss", [AOTLoss(beta=0.1), Peculiar(beta=0.1), WithSFT(AOTLoss(beta=0.1), 1.0)])
def test_a_loss_that_may_couple_pairs_gets_them_all_at_once(loss: PreferenceLoss, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts, "grouped", lambda *_: pytest.fail("the batch was cut"))
    method: Any = make_method("dpo", loss=loss)
    method.compute(make_data(method.row_type).train_batch(0)).loss.backward()


def test_the_head_is_multiplied_once_for_values_and_gradients(monkeypatch: pytest.MonkeyPatch):
    made = []
    real = head.Head.logits
    monkeypatch.setattr(
        head.Head, "logits", lambda self, rows, **how: made.append(len(rows)) or real(self, rows, **how)
    )
    method: Any = make_method("sft")
    batch = make_data(method.row_type).train_batch(0)
    counts = []
    for in_chunks in (True, False):
        made.clear()
        outcome(method, batch, in_chunks=in_chunks)
        counts.append(sum(made))
    assert counts == [int(batch.sequences.num_scored), 2 * int(batch.sequences.num_scored)]


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo", "ppo separate", "grpo"])
def test_how_a_batch_is_laid_out_changes_no_number(name: str):
    method: Any = make_method(name.split()[0], **CASES[name])
    batch = batch_for(method, name)
    moved(method)
    networks = [method.policy] if getattr(method, "critic", None) is None else [method.policy, method.critic]
    results = []
    for layout in ("padded", "packed", "shared"):
        for network in networks:
            network.layout = layout
        results.append(outcome(method, batch, in_chunks=True))
    (loss, metrics, gradient), *others = results
    for other_loss, other_metrics, other_gradient in others:
        torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=1e-6)
        for key, value in metrics.items():
            torch.testing.assert_close(other_metrics[key], value, rtol=1e-4, atol=1e-5, msg=key)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-3, atol=1e-5)
