"""Log-probs: against double loops, by identities, and without ever holding all logits."""

import math
import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from alignlab.batches import IGNORE
from alignlab.errors import ConfigError
from alignlab.kernels.head import _compiled, exps_, row_stride
from alignlab.kernels.logprobs import linear_argmax, linear_logprobs, shift_labels, token_logprobs
from tests.reference import logprobs as twins
from tests.reference.check import DTYPES, assert_close, assert_like_twin

B, T, D, V = 3, 47, 31, 123
N = B * T


def make_labels(*shape: int, vocab_size: int = V) -> torch.Tensor:
    """Labels with about a third ignored."""
    labels = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(1))
    return labels.masked_fill(torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.3, IGNORE)


def make_head(num_rows: int = N, hidden_size: int = D, vocab_size: int = V) -> tuple[torch.Tensor, ...]:
    """Peaky: the logits have a standard deviation of about 3, so nothing is nearly uniform."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(num_rows, hidden_size, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab_size, hidden_size, generator=generator, dtype=torch.float64) * 3 / hidden_size**0.5
    return hidden, weight, torch.randn(vocab_size, generator=generator, dtype=torch.float64)


class LargestTensor(TorchDispatchMode):
    """Watches every operation and remembers the shapes of what they make."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.shapes += [x.shape for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
        return out

    @property
    def numel(self) -> int:
        return max(shape.numel() for shape in self.shapes)


def test_labels_move_one_place_to_the_left():
    labels = torch.tensor([[IGNORE, 5, 6, 7], [1, IGNORE, 2, IGNORE]])
    expected = torch.tensor([[5, 6, 7, IGNORE], [IGNORE, 2, IGNORE, IGNORE]])
    assert torch.equal(shift_labels(labels), expected)
    assert torch.equal(labels[0], torch.tensor([IGNORE, 5, 6, 7]))  # untouched


@pytest.mark.parametrize("dtype", DTYPES)
def test_token_logprobs_equal_the_double_loop(dtype):
    logits = 3 * torch.randn(2, 7, 13, dtype=torch.float64)
    labels = make_labels(2, 7, vocab_size=13)
    assert_like_twin(
        lambda z: (token_logprobs(z, labels),), lambda z: (twins.token_logprobs(z, labels),), logits, dtype=dtype
    )


def test_all_two_token_replies_have_probability_one_together():
    """The decisive test of the shift: reading a neighbouring position would break the sum."""
    vocab_size, prompt = 11, (4, 2)
    table = 3 * torch.randn(vocab_size, vocab_size, dtype=torch.float64)  # next-token logits after each token
    ids = torch.tensor([[*prompt, i, j] for i in range(vocab_size) for j in range(vocab_size)])
    labels = ids.clone()
    labels[:, : len(prompt)] = IGNORE
    logprobs = token_logprobs(table[ids], shift_labels(labels))
    assert logprobs.sum(1).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    by_hand = table.log_softmax(-1)[prompt[-1], ids[:, 2]] + table.log_softmax(-1)[ids[:, 2], ids[:, 3]]
    assert_close(logprobs.sum(1), by_hand)


def test_half_precision_logits_are_upcast_before_the_softmax():
    logits = (4 * torch.randn(1, 512, 1000)).bfloat16()
    labels = torch.randint(1000, (1, 512))
    exact = token_logprobs(logits.double(), labels)
    assert_close(token_logprobs(logits, labels), exact)
    careless = logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    assert (careless - exact).abs().max() > 0.02  # nats per token: the mistake that this guards against


@pytest.mark.parametrize("what", [math.nan, math.inf])
def test_ignored_positions_never_leak(what):
    logits = torch.randn(2, 5, 9)
    labels = make_labels(2, 5, vocab_size=9)
    labels[0, 2], labels[1, 1] = IGNORE, 3
    logits[labels == IGNORE] = what
    logits.requires_grad_()
    logprobs = token_logprobs(logits, labels)
    logprobs.sum().backward()
    assert torch.equal(logprobs == 0, labels == IGNORE)
    assert torch.isfinite(logits.grad).all() and not logits.grad[labels == IGNORE].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("temperature", "with_bias", "chunk_size"), [(1.0, False, None), (0.7, True, 10), (2.5, True, 1)]
)
def test_linear_logprobs_and_entropy_equal_the_loop(dtype, temperature, with_bias, chunk_size):
    hidden, weight, bias = make_head()
    labels = make_labels(N)

    def ours(hidden, weight, *bias):
        return linear_logprobs(
            hidden,
            weight,
            labels,
            bias=bias[0] if bias else None,
            temperature=temperature,
            chunk_size=chunk_size,
            entropy=True,
        )

    def twin(hidden, weight, *bias):
        return twins.linear_logprobs(hidden, weight, labels, bias[0] if bias else None, temperature)

    assert_like_twin(ours, twin, hidden, weight, *([bias] if with_bias else []), dtype=dtype)


@pytest.mark.parametrize(("scale", "softcap"), [(1.6, None), (1.0, 1.5), (0.8, 2.0)])
@pytest.mark.parametrize("chunk_size", [None, 10])
def test_scale_and_soft_cap_stand_between_products_and_logits(scale, softcap, chunk_size):
    hidden, weight, bias = make_head()
    labels = make_labels(N)
    settings = {"bias": bias, "scale": scale, "softcap": softcap}
    out = linear_logprobs(hidden, weight, labels, temperature=0.7, chunk_size=chunk_size, entropy=True, **settings)
    logits = scale * (hidden @ weight.T + bias)
    logits = (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / 0.7
    assert_close(out.logprobs, token_logprobs(logits, labels))
    entropies = torch.distributions.Categorical(logits=logits).entropy()
    assert_close(out.entropy, entropies.masked_fill(labels == IGNORE, 0.0))
    assert linear_argmax(hidden, weight, **settings).equal(logits.argmax(-1))


@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (1.3, 1.5)])
@pytest.mark.parametrize("entropy", [False, True])
def test_linear_logprobs_pass_gradcheck(entropy, scale, softcap):
    hidden, weight, bias = (x.requires_grad_() for x in make_head(6, 4, 9))
    labels = make_labels(6, vocab_size=9)

    def outputs(hidden, weight, bias):
        settings = {"temperature": 0.8, "scale": scale, "softcap": softcap}
        out = linear_logprobs(hidden, weight, labels, bias=bias, chunk_size=2, entropy=entropy, **settings)
        return (out.logprobs, out.entropy) if entropy else out.logprobs

    assert torch.autograd.gradcheck(outputs, (hidden, weight, bias))


def test_linear_logprobs_equal_token_logprobs_of_the_logits():
    hidden, weight, bias = make_head()
    labels = make_labels(N)
    logits = (hidden @ weight.T + bias) / 1.3
    out = linear_logprobs(hidden, weight, labels, bias=bias, temperature=1.3)
    assert_close(out.logprobs, token_logprobs(logits, labels))
    assert out.entropy is None


@pytest.mark.parametrize("chunk_size", [1, 7, 64, N, 10 * N, None])
def test_the_chunk_size_changes_nothing(chunk_size):
    hidden, weight, bias = (x.requires_grad_() for x in make_head())
    labels = make_labels(N)

    def run(size):
        out = linear_logprobs(hidden, weight, labels, bias=bias, chunk_size=size, entropy=True)
        return *out, *torch.autograd.grad(out.logprobs.sum() + out.entropy.square().sum(), (hidden, weight, bias))

    for one, other in zip(run(chunk_size), run(13), strict=True):
        assert_close(one, other)


def test_all_logits_never_exist_at_once():
    hidden, weight, bias = (x.float().requires_grad_() for x in make_head(400, 8, 300))
    labels = make_labels(400, vocab_size=300)
    with LargestTensor() as seen:
        out = linear_logprobs(hidden, weight, labels, bias=bias, chunk_size=16, entropy=True)
        (out.logprobs.sum() + out.entropy.sum()).backward()
    assert seen.numel == 16 * row_stride(300, itemsize=4)
    with LargestTensor() as seen:  # the naive form is caught, so the watch works
        token_logprobs(hidden @ weight.T, labels).sum().backward()
    assert seen.numel == 400 * 300


def test_a_large_vocabulary_is_chunked_without_being_asked():
    hidden, weight = torch.randn(2048, 2), torch.randn(32_000, 2)
    with LargestTensor() as seen:
        linear_logprobs(hidden, weight, torch.zeros(2048, dtype=torch.int64))
    assert seen.numel <= 2048 * 32_000 / 3


def test_only_inputs_and_two_numbers_per_row_are_kept_for_backward():
    hidden, weight, _ = (x.requires_grad_() for x in make_head(400, 8, 300))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        linear_logprobs(hidden, weight, make_labels(400, vocab_size=300), chunk_size=16)
    others = [x for x in kept if x.data_ptr() not in (hidden.data_ptr(), weight.data_ptr())]
    assert others and all(x.numel() <= 400 for x in others)


def test_a_frozen_head_costs_no_gradient():
    hidden, weight, bias = make_head(20, 5, 40)
    hidden.requires_grad_()
    with LargestTensor() as seen:
        linear_logprobs(
            hidden, weight, make_labels(20, vocab_size=40), bias=bias, chunk_size=3
        ).logprobs.sum().backward()
    assert hidden.grad is not None and weight.grad is None and bias.grad is None
    assert torch.Size([40, 5]) not in seen.shapes  # no buffer of the weight's shape was ever made


def test_frozen_hidden_states_get_no_gradient():
    hidden, weight, _ = make_head(20, 5, 40)
    weight.requires_grad_()
    linear_logprobs(hidden, weight, make_labels(20, vocab_size=40)).logprobs.sum().backward()
    assert weight.grad is not None and hidden.grad is None


def test_ignored_rows_of_hidden_states_never_leak():
    hidden, weight, bias = make_head()
    labels = make_labels(N)
    clean = linear_logprobs(hidden, weight, labels, entropy=True)
    hidden[labels == IGNORE] = math.nan
    hidden, weight, bias = (x.requires_grad_() for x in (hidden, weight, bias))
    out = linear_logprobs(hidden, weight, labels, bias=bias, chunk_size=10, entropy=True)
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert torch.equal(linear_logprobs(hidden, weight, labels).logprobs, clean.logprobs)
    assert not out.logprobs[labels == IGNORE].any() and not out.entropy[labels == IGNORE].any()
    assert not hidden.grad[labels == IGNORE].any()
    assert all(torch.isfinite(x.grad).all() for x in (hidden, weight, bias))


@pytest.mark.parametrize("num_rows", [0, 4])
def test_nothing_to_score_is_fine_and_differentiable(num_rows):
    hidden, weight, bias = (x.requires_grad_() for x in make_head(num_rows, 5, 7))
    labels = torch.full((num_rows,), IGNORE)
    out = linear_logprobs(hidden, weight, labels, bias=bias, entropy=True)
    assert out.logprobs.shape == out.entropy.shape == (num_rows,) and not out.logprobs.any()
    (out.logprobs.sum() + out.entropy.sum()).backward()
    for x in (hidden, weight, bias):
        assert x.grad.shape == x.shape and not x.grad.any()


def test_half_hidden_states_with_a_float32_head():
    """As under mixed precision: nothing is rounded further, and each gradient has the dtype of its input."""
    hidden, weight, _ = make_head()
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.float().requires_grad_()
    labels = make_labels(N)
    logprobs = linear_logprobs(hidden, weight, labels).logprobs
    assert logprobs.dtype == torch.float32
    assert_close(logprobs, linear_logprobs(hidden.double(), weight.double(), labels).logprobs)
    logprobs.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32


def test_autocast_around_it_changes_nothing():
    hidden, weight, _ = (x.float().requires_grad_() for x in make_head())
    labels = make_labels(N)

    def run():
        logprobs = linear_logprobs(hidden, weight, labels).logprobs
        return logprobs, *torch.autograd.grad(logprobs.sum(), (hidden, weight))

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run()
        logits = torch.randn(2, 3, 5)
        assert token_logprobs(logits, torch.zeros(2, 3, dtype=torch.int64)).dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(plain, mixed, strict=True))


def test_entropy_of_known_distributions():
    labels = torch.zeros(1, dtype=torch.int64)
    uniform = linear_logprobs(torch.zeros(1, 3), torch.randn(8, 3), labels, entropy=True)
    assert uniform.entropy.item() == pytest.approx(math.log(8))
    assert uniform.logprobs.item() == pytest.approx(-math.log(8))
    # logits ln 3 and 0 at temperature 1: p = (3/4, 1/4), H = ln 4 - 3/4 ln 3
    head = torch.tensor([[math.log(3)], [0.0]], dtype=torch.float64)
    two = linear_logprobs(torch.ones(1, 1, dtype=torch.float64), head, labels, entropy=True)
    assert two.logprobs.item() == pytest.approx(math.log(0.75))
    assert two.entropy.item() == pytest.approx(math.log(4) - 0.75 * math.log(3))
    # and at temperature 1/2: p = (9/10, 1/10)
    sharp = linear_logprobs(torch.ones(1, 1, dtype=torch.float64), head, labels, temperature=0.5, entropy=True)
    assert sharp.logprobs.item() == pytest.approx(math.log(0.9))
    assert sharp.entropy.item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))


def test_forbidden_tokens_leave_entropy_and_gradients_finite():
    """A bias of -inf forbids a token: p = 0, where p log p is 0 and not NaN."""
    hidden, weight, bias = make_head(6, 4, 9)
    bias[3] = -math.inf
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    labels = torch.tensor([0, 1, 2, 4, 5, 6])
    out = linear_logprobs(hidden, weight, labels, bias=bias, entropy=True)
    (out.logprobs.sum() + out.entropy.sum()).backward()
    allowed = [j for j in range(9) if j != 3]
    expected = ((hidden @ weight.T + bias)[:, allowed]).softmax(-1)
    assert_close(out.entropy, -(expected * expected.log()).sum(-1))
    assert torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all() and not weight.grad[3].any()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch.compile for CPUs")
def test_the_compiled_tile_is_the_plain_one():
    """Compiled by default on GPUs only; the same source, here for the CPU."""
    tile = torch.empty(64, 300)
    for rows in (64, 37, 1):
        logits = 5 * torch.randn(rows, 300, generator=torch.Generator().manual_seed(rows))
        labels = torch.arange(rows)
        expected = logits.clone()
        outputs = exps_(expected, labels)
        found = tile[:rows].copy_(logits)
        for ours, theirs in zip(_compiled()(found, labels), outputs, strict=True):
            torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(found, expected)


def test_a_second_derivative_is_refused():
    hidden, weight, _ = make_head(4, 3, 5)
    hidden.requires_grad_()
    logprobs = linear_logprobs(hidden, weight, torch.tensor([0, 1, 2, 3])).logprobs
    (gradient,) = torch.autograd.grad(logprobs.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": math.nan}, {"chunk_size": 0}])
def test_impossible_settings_are_config_errors(settings):
    hidden, weight, _ = make_head(4, 3, 5)
    with pytest.raises(ConfigError, match=next(iter(settings))):
        linear_logprobs(hidden, weight, torch.zeros(4, dtype=torch.int64), **settings)


def test_the_most_likely_tokens_are_those_of_the_logits():
    hidden, weight, bias = make_head()
    expected = [max(range(V), key=row.__getitem__) for row in (hidden @ weight.T + bias).tolist()]
    assert linear_argmax(hidden, weight, bias=bias).tolist() == expected
    assert linear_argmax(torch.ones(2, 1), torch.tensor([[1.0], [2.0], [2.0]])).tolist() == [
        1,
        1,
    ]  # of equals the lowest
    assert linear_argmax(hidden[:0], weight).tolist() == []


def test_the_most_likely_tokens_are_chunked_too():
    with LargestTensor() as seen:
        linear_argmax(torch.randn(2048, 2).requires_grad_(), torch.randn(32_000, 2))
    assert seen.numel <= 2048 * 32_000 / 3


@pytest.mark.parametrize(
    ("vocabulary", "stride"), [(50257, 50272), (8192, 8208), (151936, 151936), (7, 16), (1024, 1040)]
)
def test_rows_of_a_tile_begin_on_cache_lines_and_not_all_at_one_place_of_a_page(vocabulary: int, stride: int):
    assert row_stride(vocabulary, itemsize=4) == stride
    assert row_stride(vocabulary, itemsize=4) * 4 % 64 == 0 and row_stride(vocabulary, itemsize=4) * 4 % 4096 != 0
