"""Gradients of embeddings: one in place of two gives the same bits, and memory is given back before a large one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alignlab.batches import Sequences
from alignlab.kernels.plain import choose_plain
from alignlab.models import embeddings
from alignlab.models.backbone import hidden_states, lm_head, unwrapped
from alignlab.models.critic import Critic
from alignlab.models.embeddings import head_after_body
from alignlab.models.policy import Policy
from tests import tiny_models as tiny

KINDS = ["gpt2", "gpt_neo", "qwen2"]
ROWS = tiny.tiny_sequences((11, 7, 5, 9))


def by_logprobs(policy: Policy, rows: Sequences) -> Tensor:
    """A loss that is taken after the log-probs."""
    return -policy(rows, temperature=0.8).logprobs.sum()


def by_parts(policy: Policy, rows: Sequences) -> Tensor:
    """The same inside the head, in two parts."""
    halves = [torch.tensor([0, 2]), torch.tensor([1, 3])]
    parts = [(half, Sequences(*(x[half] for x in rows))) for half in halves]
    return policy.loss_in_parts(rows, parts, lambda _, out: (-out.logprobs.sum(), {}), temperature=0.8).loss


def gradients(policy: Policy, loss: Callable[[Policy, Sequences], Tensor]) -> dict[str, Tensor]:
    """Of every weight, after two micro-batches."""
    policy.zero_grad(set_to_none=True)
    for rows in (ROWS, tiny.tiny_sequences((6, 8, 4, 9), seed=1)):
        loss(policy, rows).backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


class Lookups(TorchDispatchMode):
    """How many rows the gradients of lookups have that are made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.embedding_dense_backward.default:
            self.rows.append(args[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("loss", [by_logprobs, by_parts])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_are_those_of_autograd_to_the_bit(kind: str, loss: Any, layout: Any) -> None:
    policy = tiny.tiny_policy(kind)
    if layout == "packed" and kind == "gpt_neo":
        pytest.skip("GPT-Neo cannot be packed")
    policy.layout = layout
    fast = gradients(policy, loss)
    choose_plain(["tied_embedding"])
    plain = gradients(policy, loss)
    assert fast.keys() == plain.keys() and len(fast) > 10
    for name, gradient in plain.items():
        assert torch.equal(fast[name], gradient), name


@pytest.mark.parametrize("kind", KINDS)
def test_no_second_matrix_is_made(kind: str) -> None:
    policy = tiny.tiny_policy(kind)
    policy.layout = "padded"
    vocabulary, tokens = len(lm_head(policy.model).weight), len(ROWS.input_ids.unique())
    assert tokens < vocabulary
    for plain, expected in (([], tokens), (["tied_embedding"], vocabulary)):
        choose_plain(plain)
        with Lookups() as lookups:
            by_parts(policy, ROWS).backward()
        assert expected in lookups.rows and lookups.rows.count(vocabulary) == len(plain)


@pytest.mark.parametrize("plain", [[], ["tied_embedding"]])
def test_a_padding_token_learns_from_the_head_alone(plain: list[str]) -> None:
    policy = tiny.tiny_policy("gpt2")
    policy.layout = "padded"
    embedding, token = unwrapped(policy.model).get_input_embeddings(), int(ROWS.input_ids[0, 1])
    learned = {}
    for embedding.padding_idx in (None, token):
        choose_plain(plain)
        learned[embedding.padding_idx] = gradients(policy, by_logprobs)["model.transformer.wte.weight"]
    others = torch.arange(len(learned[None])) != token
    assert torch.equal(learned[token][others], learned[None][others])
    assert not torch.allclose(learned[token][token], learned[None][token])
    assert learned[token][token].any()


@pytest.mark.parametrize("padding", [None, int(ROWS.input_ids[0, 1])])
def test_one_use_alone_has_its_own_gradient(padding: int | None) -> None:
    """The body's loss, without a head; the head's, on hidden states that are given; and a second lookup."""
    policy = tiny.tiny_policy("gpt2")
    weight = lm_head(policy.model).weight
    unwrapped(policy.model).get_input_embeddings().padding_idx = padding

    def loss(times: int) -> Tensor:
        states = [hidden_states(policy.model, ROWS.input_ids, ROWS.attention_mask) for _ in range(times)]
        return sum((state.square().sum() for state in states), start=torch.zeros(()))

    with head_after_body(policy.model) as head:
        once, twice = loss(1), loss(2)
    for found, expected in ((once, loss(1)), (twice, loss(2))):
        [ours], [theirs] = (torch.autograd.grad(of, [weight], retain_graph=True) for of in (found, expected))
        assert torch.equal(ours, theirs) and theirs.any()
    [of_head] = torch.autograd.grad((head().weight * 3).sum(), [weight])
    assert torch.equal(of_head, torch.full_like(weight, 3.0))


@pytest.mark.parametrize("change", ["frozen", "untied", "renormalised", "wrapped", "no_grad"])
def test_whatever_is_not_plainly_tied_and_trained_is_left_alone(change: str) -> None:
    policy = tiny.tiny_policy("gpt2")
    network = unwrapped(policy.model)
    embedding = network.get_input_embeddings()
    if change == "frozen":
        embedding.weight.requires_grad_(False)
    elif change == "untied":
        network.lm_head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    elif change == "renormalised":
        embedding.max_norm = 1.0
    elif change == "wrapped":
        embedding.forward = embedding.forward
    with torch.set_grad_enabled(change != "no_grad"), head_after_body(policy.model) as head:
        hidden_states(policy.model, ROWS.input_ids, ROWS.attention_mask)
    assert head().weight is lm_head(policy.model).weight


def test_the_network_is_as_it_was_afterwards() -> None:
    policy = tiny.tiny_policy("gpt2")
    embedding = unwrapped(policy.model).get_input_embeddings()
    with pytest.raises(ZeroDivisionError), head_after_body(policy.model):
        assert "forward" in vars(embedding)
        raise ZeroDivisionError
    assert "forward" not in vars(embedding)


# -- room for a gradient ---------------------------------------------------------------------------------------------
class Order(TorchDispatchMode):
    """What happens inside, in its order: `trim`, and `gradient` where one of that many rows is made."""

    def __init__(self, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.rows = rows
        self.seen: list[str] = []
        monkeypatch.setattr(embeddings, "_malloc_trim", lambda: lambda pad: self.seen.append("trim"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.embedding_dense_backward.default and args[2] == self.rows:
            self.seen.append("gradient")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_memory_is_given_back_just_before_a_lookups_gradient(layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_LARGE", 0)
    critic = Critic.from_policy(tiny.tiny_policy("llama"))
    critic.layout = layout
    torch.nn.init.normal_(critic.value_head.linear.weight, generator=torch.Generator().manual_seed(0))
    body: Any = critic.body
    embedding = body.get_input_embeddings()
    found = []
    for plain, expected in (([], ["trim", "gradient"]), (["room_for_gradient"], ["gradient"])):
        choose_plain(plain)
        critic.zero_grad(set_to_none=True)
        with Order(len(embedding.weight), monkeypatch) as order:
            loss = critic(ROWS).sum()
            assert order.seen == []
            loss.backward()
        assert order.seen == expected
        assert not embedding._forward_hooks
        found.append(embedding.weight.grad)
    assert found[0].any() and torch.equal(*found)


def test_nothing_is_given_back_for_a_small_gradient_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    critic, policy = Critic.from_policy(tiny.tiny_policy("gpt2")), tiny.tiny_policy("gpt2")
    frozen = tiny.tiny_policy("gpt2")
    frozen.model.requires_grad_(False)
    with Order(len(lm_head(policy.model).weight), monkeypatch) as order:
        critic(ROWS).sum().backward()  # small
        assert "trim" not in order.seen
        monkeypatch.setattr(embeddings, "_LARGE", 0)
        by_parts(policy, ROWS).backward()  # handed on
        with torch.no_grad():
            critic(ROWS)
        Critic.from_policy(frozen)(ROWS).sum().backward()
        assert "trim" not in order.seen
        critic(ROWS).sum().backward()
        assert "trim" in order.seen


def test_freed_memory_is_the_systems_again() -> None:
    if embeddings._malloc_trim() is None:
        pytest.skip("this C library has no malloc_trim")

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

    blocks = [torch.ones(2**14) for _ in range(3200)]  # 200 MiB in blocks of 64 KiB, which stay with the process
    kept = blocks[::100]
    before = resident()
    blocks.clear()
    embeddings._give_back(torch.zeros(1))
    assert before - resident() > 100 and kept[-1][0] == 1
