"""Supervised fine-tuning: the negative log-likelihood of the tokens to imitate."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from alignlab.kernels.masked import masked_mean
from alignlab.losses.base import LossOutput, Normalizer, token_mean


class SFTLoss(nn.Module):
    """-(sum of log-probs of counted tokens) / normalizer."""

    def forward(
        self, logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, normalizer: Normalizer = None
    ) -> LossOutput:
        """`normalizer`: number of counted tokens of the whole optimizer step (None: of this call).

        Metric `loss`: nats per token over this call's own tokens, so exp(loss) is their perplexity.
        """
        nll = -logprobs  # nats per token; the means upcast
        return LossOutput(token_mean(nll, mask, normalizer), {"loss": masked_mean(nll.detach(), mask)})
