"""The output head and packed rows on a CUDA device: the numbers of the CPU, within what bfloat16 factors allow."""

import pytest
import torch

from alignlab.kernels.chunked_loss import linear_loss
from alignlab.kernels.logprobs import linear_logprobs
from alignlab.models.packing import hidden_at
from tests.tiny_models import tiny_policy, tiny_sequences

pytestmark = pytest.mark.gpu


def inputs(device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 64, generator=generator).to(device).requires_grad_()
    weight = (torch.randn(1000, 64, generator=generator) / 8).to(device).requires_grad_()
    return hidden, weight, torch.randint(1000, (300,), generator=generator).to(device)


def outcome(device: str, *, in_parts: bool, autocast: bool) -> list[torch.Tensor]:
    hidden, weight, labels = inputs(device)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        if in_parts:
            parts = list(torch.arange(300, device=device).split(70))
            loss, _ = linear_loss(hidden, weight, labels, parts, lambda _, scored: (-scored.logprobs.sum() / 300, {}))
        else:
            loss = -linear_logprobs(hidden, weight, labels).logprobs.mean()
    loss.backward()
    return [loss.detach().cpu(), hidden.grad.cpu(), weight.grad.cpu()]


@pytest.mark.parametrize("in_parts", [True, False])
@pytest.mark.parametrize(("autocast", "rtol", "atol"), [(False, 1e-4, 1e-6), (True, 3e-2, 3e-4)])
def test_losses_and_gradients_are_those_of_the_cpu(in_parts: bool, autocast: bool, rtol: float, atol: float):
    ours = outcome("cuda", in_parts=in_parts, autocast=autocast)
    for found, expected in zip(ours, outcome("cpu", in_parts=False, autocast=False), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_flex_attention_gives_packed_rows_the_numbers_of_padded_ones(layout: str):
    policy = tiny_policy("llama")
    sequences = tiny_sequences([5, 9, 12, 7])
    padded = hidden_at(policy.model, sequences, sequences.attention_mask, layout="padded").detach()
    policy = policy.to("cuda")
    on_gpu = type(sequences)(*(part.to("cuda") for part in sequences))
    found = hidden_at(policy.model, on_gpu, on_gpu.attention_mask, layout=layout)
    found.square().sum().backward()
    torch.testing.assert_close(found.detach().cpu(), padded, rtol=1e-3, atol=1e-4)
