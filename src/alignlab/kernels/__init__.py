"""Pure tensor functions, the ground floor of everything that is computed."""

from alignlab.kernels.advantages import gae, group_advantages
from alignlab.kernels.divergence import full_kl, kl_estimate
from alignlab.kernels.logprobs import LinearLogprobs, linear_argmax, linear_logprobs, shift_labels, token_logprobs
from alignlab.kernels.masked import masked_mean, masked_sum, masked_var, masked_whiten

__all__ = [
    "LinearLogprobs",
    "full_kl",
    "gae",
    "group_advantages",
    "kl_estimate",
    "linear_argmax",
    "linear_logprobs",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "masked_whiten",
    "shift_labels",
    "token_logprobs",
]
