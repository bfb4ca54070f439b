"""The loss inside the head: the same numbers as the loss over log-probs, with half the work left out."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from alignlab.errors import ConfigError
from alignlab.kernels.chunked_loss import grouped, linear_loss
from alignlab.kernels.logprobs import LinearLogprobs, token_logprobs
from tests.kernels.test_logprobs import make_head

N, D, V = 23, 7, 37
PARTS = [torch.tensor([0, 1, 5, 6]), torch.tensor([2, 3, 4]), torch.arange(7, 20), torch.tensor([22, 21])]  # 20 unused


def inputs(dtype=torch.float64):
    hidden, weight, bias = (x.to(dtype).requires_grad_() for x in make_head(N, D, V))
    labels = torch.randint(V, (N,), generator=torch.Generator().manual_seed(5))
    return hidden, weight, bias, labels


def curved(number: int, scored: LinearLogprobs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A part's share that couples its rows, so that a wrong split or a stale tile shows."""
    loss = (number + 1) * scored.logprobs.sum().square() * 1e-2 + scored.logprobs.cos().sum()
    if scored.entropy is not None:
        loss = loss + (scored.entropy * torch.arange(1.0, 1 + len(scored.entropy))).sin().sum()
    return loss, {"share": loss.detach(), "rows": torch.tensor(float(len(scored.logprobs)))}


def plain(hidden, weight, bias, labels, *, temperature=1.0, entropy=False, scale=1.0, softcap=None):
    """The same loss over materialised logits."""
    total = hidden.new_zeros(())
    for number, part in enumerate(PARTS):
        products = scale * (hidden[part] @ weight.T + bias)
        logits = (products if softcap is None else softcap * torch.tanh(products / softcap)) / temperature
        logp = logits.log_softmax(-1)
        own = LinearLogprobs(token_logprobs(logits, labels[part]), -(logp.exp() * logp).sum(-1) if entropy else None)
        total = total + curved(number, own)[0]
    return total


def gradients(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("chunk_size", [None, 5, 1])
@pytest.mark.parametrize(("temperature", "entropy"), [(1.0, False), (0.7, True), (1.3, False)])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (1.4, None), (1.0, 1.5), (0.8, 2.0)])
def test_it_equals_the_loss_over_all_logits(chunk_size, temperature, entropy, scale, softcap):
    hidden, weight, bias, labels = inputs()
    settings = {"temperature": temperature, "entropy": entropy, "scale": scale, "softcap": softcap}
    loss, metrics = linear_loss(hidden, weight, labels, PARTS, curved, bias=bias, chunk_size=chunk_size, **settings)
    expected = plain(hidden, weight, bias, labels, **settings)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(metrics["share"], expected.detach(), rtol=1e-12, atol=1e-12)
    assert metrics["rows"] == 22
    found = gradients(loss, hidden, weight, bias)
    for ours, theirs in zip(found, gradients(expected, hidden, weight, bias), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert not found[0][20].any()  # in no part


def test_the_gradient_honours_what_stands_above_the_loss():
    hidden, weight, bias, labels = inputs()
    loss, _ = linear_loss(hidden, weight, labels, PARTS, curved, bias=bias)
    ours = gradients((3.0 * loss).square(), hidden, weight, bias)
    expected = gradients((3.0 * plain(hidden, weight, bias, labels)).square(), hidden, weight, bias)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_second_backward_pass_is_refused():
    hidden, weight, _, labels = inputs()
    loss, _ = linear_loss(hidden, weight, labels, PARTS, curved)
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="used up"):
        loss.backward()


def test_nothing_is_differentiated_without_gradients():
    hidden, weight, bias, labels = inputs()
    with torch.no_grad():
        loss, _ = linear_loss(hidden, weight, labels, PARTS, curved, bias=bias)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(hidden, weight, bias, labels).detach())


def test_a_frozen_head_gets_no_gradient_and_pays_for_none():
    hidden, weight, bias, labels = inputs()
    with Products() as products:
        linear_loss(hidden, weight.detach(), labels, PARTS, curved, bias=bias.detach())[0].backward()
    assert products.of_shape(V, D) == 0
    assert hidden.grad is not None


def test_the_logits_of_a_part_are_made_once_unless_it_is_too_long():
    hidden, weight, _, labels = inputs()
    for chunk_size, made in ((None, 22), (5, 22 + len(PARTS[2]))):
        with Products() as products:
            linear_loss(hidden, weight, labels, PARTS, curved, chunk_size=chunk_size)[0].backward()
        assert products.rows_of_width(V) == made


def test_a_tied_head_adds_its_gradient_to_that_of_the_embedding():
    embedding = torch.nn.Embedding(V, D).double()
    ids = torch.randint(V, (N,), generator=torch.Generator().manual_seed(7))
    labels = torch.randint(V, (N,), generator=torch.Generator().manual_seed(8))
    linear_loss(embedding(ids).tanh(), embedding.weight, labels, PARTS, curved)[0].backward()
    ours, embedding.weight.grad = embedding.weight.grad, None
    plain(embedding(ids).tanh(), embedding.weight, torch.zeros(V, dtype=torch.float64), labels).backward()
    torch.testing.assert_close(ours, embedding.weight.grad, rtol=1e-10, atol=1e-12)


def test_no_parts_give_a_differentiable_zero():
    hidden, weight, _, labels = inputs()
    loss, metrics = linear_loss(hidden, weight, labels, [], curved)
    loss.backward()
    assert loss == 0 and metrics == {} and not hidden.grad.any() and not weight.grad.any()


def test_a_part_without_rows_adds_what_its_loss_says_and_no_gradient():
    hidden, weight, _, labels = inputs()
    parts = [PARTS[0], PARTS[0][:0], PARTS[1]]
    loss, _ = linear_loss(hidden, weight, labels, parts, lambda k, s: (s.logprobs.sum() + k, {}))
    expected = token_logprobs(hidden @ weight.T, labels)[torch.cat(parts)].sum() + 3
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(gradients(loss, hidden, weight), gradients(expected, hidden, weight), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_extreme_logits_stay_finite():
    hidden, weight, _, labels = inputs(torch.float32)
    loss, _ = linear_loss(hidden * 1e4, weight, labels, PARTS, lambda k, s: (-s.logprobs.sum(), {}))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all()


def test_half_precision_is_computed_in_float32():
    hidden, weight, _, labels = inputs(torch.bfloat16)
    loss, _ = linear_loss(hidden, weight, labels, PARTS, curved)
    loss.backward()
    wide, head = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    expected = plain(wide, head, torch.zeros(V), labels)
    expected.backward()
    assert loss.dtype == torch.float32 and hidden.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(weight.grad.float(), head.grad, rtol=1e-2, atol=1e-2)


def test_autocast_around_it_changes_nothing():
    hidden, weight, bias, labels = inputs(torch.float32)

    def run():
        loss, _ = linear_loss(hidden, weight, labels, PARTS, curved, bias=bias, entropy=True)
        return loss, *gradients(loss, hidden, weight, bias)

    plainly = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run()
    assert all(torch.equal(one, other) for one, other in zip(plainly, mixed, strict=True))


def test_a_loss_scaler_finds_gradients_that_float16_could_not_hold():
    """They are there before its factor is: 1e-9 of a loss, times 2^16, is well within float16's range afterwards."""
    hidden, weight, _, labels = inputs(torch.float16)
    loss, _ = linear_loss(hidden, weight, labels, PARTS, lambda k, scored: (-1e-9 * scored.logprobs.sum(), {}))
    (loss * 2**16).backward()
    plain_hidden, head = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    rows = torch.cat(PARTS)
    (-1e-9 * 2**16 * token_logprobs(plain_hidden[rows] @ head.T, labels[rows]).sum()).backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float16
    torch.testing.assert_close(hidden.grad.float(), plain_hidden.grad, rtol=2e-2, atol=1e-6)
    torch.testing.assert_close(weight.grad.float(), head.grad, rtol=2e-2, atol=1e-6)


def test_impossible_temperatures_are_refused():
    hidden, weight, _, labels = inputs()
    with pytest.raises(ConfigError, match="linear_loss: temperature=0"):
        linear_loss(hidden, weight, labels, PARTS, curved, temperature=0.0)


def test_units_are_grouped_in_order_into_tiles():
    weight = torch.empty(2**18, 1, device="meta")  # a tile of 160 rows
    assert grouped([70, 70, 70, 170, 30, 130, 1], weight) == [
        range(2),
        range(2, 3),
        range(3, 4),
        range(4, 6),
        range(6, 7),
    ]
    assert grouped([0, 0], weight) == [range(2)] and grouped([], weight) == []


class Products(TorchDispatchMode):
    """Matrix products and the shapes of their results."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "mm" in func.__name__:
            self.shapes.append(tuple(out.shape))
        return out

    def of_shape(self, *shape: int) -> int:
        return self.shapes.count(shape)

    def rows_of_width(self, width: int) -> int:
        return sum(shape[0] for shape in self.shapes if shape[1] == width)
