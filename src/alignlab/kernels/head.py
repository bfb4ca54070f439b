"""The output head, a tile of rows at a time: what the two forms in `logprobs` and `chunked_loss` are made of.

A tile holds the logits of C rows over the whole vocabulary V. It is allocated once and written again and again: a fresh
one for each chunk would cost more in page faults than its arithmetic. With x = hidden @ weight.T + bias the products, z
the logits over the temperature T, m their largest in a row and e = exp(z - m), s = sum(e), p = e / s:

    z = scale x / T                        dz / dx = scale / T
    z = cap tanh(scale x / cap) / T        dz / dx = (1 - tanh^2(scale x / cap)) scale / T        with a soft cap

    log p(y) = z_y - m - log s             d log p(y) / d z_j = [j = y] - p_j
    H = log s + sum_j entr(e_j) / s        d H / d z_j = -p_j (log p_j + H) = (entr(e_j) - e_j (H - log s)) / s

where entr(x) = -x log x, 0 at 0 (a token whose logit is -inf). One exp serves values and gradients.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_TILE_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}  # 64 and 512 MiB in float32; smaller ones spend their time on overhead
_MIN_ROWS = 160  # below this a matrix product is all memory traffic: 7 % slower at 110 (V = 151,936, D = 512)
_CACHE_LINE, _PAGE = 64, 4096  # bytes
_WHOLE = 4  # a part that must stay in one piece may be this many tiles large


class LogitSettings(NamedTuple):
    """What makes logits of the head's products: see the top of this file."""

    temperature: float = 1.0
    scale: float = 1.0  # of the network: Cohere's logit_scale, one over Granite's logits_scaling
    softcap: float | None = None  # of the network: Gemma 2's final_logit_softcapping; None: not capped


class Softmax(NamedTuple):
    """What is known of the rows of a tile; nats."""

    logprobs: Float[Tensor, "C"]  # of the labels
    log_sum: Float[Tensor, "C"]  # log s
    entropy: Float[Tensor, "C"] | None


class Head:
    """Weight and bias in the dtype of the computation, and the tile.

    Products and sums run in the promoted dtype of hidden states and weight, at least float32. The exception is bfloat16
    autocast on a GPU: there the factors of a product are bfloat16, and it still comes out, and adds up, in float32.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        settings: LogitSettings,
        operand: torch.dtype,
        largest: int,
    ):
        """`operand`: see `operand_dtype`. `largest`: rows of the largest tile that will be asked for."""
        self.dtype, self.operand = computed_dtype(hidden, weight), operand
        self.hidden, self.settings = hidden, settings
        self.weight = weight.to(self.operand)  # no copy for float32 weights
        self.bias = None if bias is None else bias.to(self.dtype)
        self.largest = largest
        self._tile = self._new_tile()
        self._scratch: Tensor | None = None
        self._slope: Tensor | None = None  # of the soft cap at the tile's logits; gradients need it

    def rows(self, index: Int[Tensor, "C"]) -> Float[Tensor, "C D"]:
        """The hidden states of some rows."""
        return self.hidden[index].to(self.operand)

    def logits(self, rows: Float[Tensor, "C D"], *, differentiable: bool = False) -> Float[Tensor, "C V"]:
        """Their logits over the temperature, in the tile: the next call overwrites them.

        `differentiable`: `gradient_` will be asked for theirs (a soft cap's slope is kept, another tile).
        """
        tile = self._product(rows, self.weight.T, out=self._tile[: len(rows)])
        if self.bias is not None:
            tile += self.bias
        temperature, scale, softcap = self.settings
        if scale != 1.0:
            tile.mul_(scale)
        if softcap is not None:
            tile.div_(softcap).tanh_()
            if differentiable:
                self._keep_slope(tile)
            tile.mul_(softcap)
        return tile if temperature == 1.0 else tile.div_(temperature)

    def exps(self, rows: int) -> Float[Tensor, "C V"]:
        """The tile as `softmax_` left it."""
        return self._tile[:rows]

    def softmax_(self, logits: Float[Tensor, "C V"], labels: Int[Tensor, "C"], *, entropy: bool) -> Softmax:
        """Turns a tile of logits z into e = exp(z - m); with `entropy` the scratch tile becomes entr(e)."""
        shift_and_exp_ = _compiled() if logits.is_cuda else exps_
        picked, total = shift_and_exp_(logits, labels)
        log_sum = total.log()
        of_rows = None
        if entropy:
            of_rows = log_sum + torch.special.entr(logits, out=self._entr(len(logits))).sum(-1) / total
        return Softmax(picked - log_sum, log_sum, of_rows)

    def gradient_(
        self,
        exps: Float[Tensor, "C V"],
        labels: Int[Tensor, "C"],
        softmax: Softmax,
        upstream: Float[Tensor, "C"],
        upstream_entropy: Float[Tensor, "C"] | None,
    ) -> Float[Tensor, "C V"]:
        """Turns the tile that `softmax_` left into the gradient of its rows' products."""
        inverse = torch.exp(-softmax.log_sum)  # 1 / s
        factor = -upstream
        if upstream_entropy is not None:
            assert softmax.entropy is not None and self._scratch is not None  # see `softmax_`
            factor = factor - upstream_entropy * (softmax.entropy - softmax.log_sum)
        grad = exps.mul_((factor * inverse).unsqueeze(1))
        grad.scatter_add_(1, labels.unsqueeze(1), upstream.unsqueeze(1))
        if upstream_entropy is not None:
            assert self._scratch is not None
            grad += self._scratch[: len(grad)].mul_((upstream_entropy * inverse).unsqueeze(1))
        temperature, scale, softcap = self.settings
        if softcap is not None:
            assert self._slope is not None  # see `logits`
            grad *= self._slope[: len(grad)]
        if scale != 1.0:
            grad *= scale
        return grad if temperature == 1.0 else grad.div_(temperature)

    def to_hidden(self, grad: Float[Tensor, "C V"]) -> Float[Tensor, "C D"]:
        """The gradient of the hidden states from that of the products."""
        return self._product(grad.to(self.operand), self.weight)

    def add_to_weight(
        self, total: Float[Tensor, "V D"], grad: Float[Tensor, "C V"], rows: Float[Tensor, "C D"]
    ) -> None:
        """Adds the gradient of the weight to `total`, which is in the dtype of the computation."""
        if self.operand == self.dtype:
            total.addmm_(grad.T, rows)
        else:
            total += self._product(grad.to(self.operand).T, rows)

    def _new_tile(self) -> Float[Tensor, "C V"]:
        vocabulary = len(self.weight)
        stride = row_stride(vocabulary, self.dtype.itemsize)
        return torch.empty(self.largest, stride, dtype=self.dtype, device=self.weight.device)[:, :vocabulary]

    def _product(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        """a @ b in the dtype of the computation."""
        if self.operand == self.dtype:
            return torch.mm(a, b, out=out)
        return torch.mm(a, b, out_dtype=self.dtype, out=out)  # CUDA only: half-precision factors, float32 sums

    def _keep_slope(self, tanh: Float[Tensor, "C V"]) -> None:
        """1 - tanh^2, for `gradient_`."""
        if self._slope is None:
            self._slope = self._new_tile()
        torch.square(tanh, out=self._slope[: len(tanh)]).neg_().add_(1.0)

    def _entr(self, rows: int) -> Tensor:
        if self._scratch is None:
            self._scratch = self._new_tile()
        return self._scratch[:rows]


def exps_(logits: Float[Tensor, "C V"], labels: Int[Tensor, "C"]) -> tuple[Float[Tensor, "C"], Float[Tensor, "C"]]:
    """Turns logits z into e = exp(z - m), in place; gives z - m of the labels, and s."""
    shifted = logits.sub_(logits.amax(-1, keepdim=True))
    picked = shifted.gather(1, labels.unsqueeze(1)).squeeze(1)
    return picked, shifted.exp_().sum(-1)


@functools.cache
def _compiled() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`exps_` as one kernel, for GPUs: the tile is read twice and written once instead of four times and two.

    TORCH_COMPILE_DISABLE=1 in the environment turns it off.
    """
    return torch.compile(exps_, dynamic=True)


class Gradients(NamedTuple):
    """What has been collected so far of the gradients of hidden states, weight and bias; None where none is wanted.

    All in the dtype of the computation, whatever they are the gradients of: a loss scaler's factor may still come.
    """

    hidden: Float[Tensor, "N D"] | None
    weight: Float[Tensor, "V D"] | None
    bias: Float[Tensor, "V"] | None

    @classmethod
    def zeros(cls, head: Head, needs_hidden: bool, needs_weight: bool, needs_bias: bool) -> "Gradients":
        """Nothing yet."""
        return cls(
            torch.zeros_like(head.hidden, dtype=head.dtype) if needs_hidden else None,
            torch.zeros_like(head.weight, dtype=head.dtype) if needs_weight else None,
            torch.zeros_like(head.bias) if needs_bias and head.bias is not None else None,
        )

    def add(self, head: Head, index: Int[Tensor, "C"], rows: Float[Tensor, "C D"], grad: Float[Tensor, "C V"]) -> None:
        """Takes in the gradient of the products of some rows; each row comes once."""
        if self.hidden is not None:
            self.hidden[index] = head.to_hidden(grad)
        if self.weight is not None:
            head.add_to_weight(self.weight, grad, rows)
        if self.bias is not None:
            self.bias.add_(grad.sum(0))

    def to(self, dtypes: Sequence[torch.dtype | None]) -> tuple[Tensor | None, ...]:
        """In the dtypes of what they are the gradients of (None: of nothing)."""
        return tuple(None if grad is None else grad.to(dtype) for grad, dtype in zip(self, dtypes, strict=True))


def computed_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What logits, log-probs and sums are in: the wider of the two, at least float32."""
    return torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)


def operand_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What the factors of the products are in; to be asked outside of `autocast_off`.

    Not float16: gradients that are taken before a loss scaler has scaled them would vanish in it.
    """
    if hidden.is_cuda and torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16:
        return torch.bfloat16
    return computed_dtype(hidden, weight)


def row_stride(vocabulary: int, itemsize: int) -> int:
    """Elements from one row of a tile to the next: rows begin on cache lines, and not all at one place of a page.

    Matrix products are slow otherwise: GPT-2's 50,257 columns end to end take a head's three products 1.2 times as long
    (float32, D = 768, one thread of a Zen 4), 8,192 columns 1.08 times.
    """
    line, page = _CACHE_LINE // itemsize, _PAGE // itemsize
    aligned = -(-vocabulary // line) * line
    return aligned + line if aligned % page == 0 else aligned


def tile_rows(weight: Float[Tensor, "V D"]) -> int:
    """How many rows' logits should exist at once."""
    return max(_MIN_ROWS, _TILE_ELEMENTS.get(weight.device.type, _TILE_ELEMENTS["cpu"]) // weight.shape[0])


def whole_rows(weight: Float[Tensor, "V D"]) -> int:
    """How many rows' logits may exist at once, to keep a part that belongs together in one tile."""
    return _WHOLE * tile_rows(weight)
