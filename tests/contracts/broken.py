"""Losses broken on purpose, each in one place; `Logistic` is what the pairwise ones are made from, and right."""

import math

import torch
import torch.nn.functional as F

from alignlab.kernels.masked import masked_mean
from alignlab.losses.anchored import BCOLoss
from alignlab.losses.base import LossOutput
from alignlab.losses.policy import PPOPolicyLoss, ValueLoss
from alignlab.losses.preference import IPOLoss, PreferenceLoss, log_ratio_difference
from alignlab.losses.reward import BradleyTerryLoss
from alignlab.losses.sft import SFTLoss
from alignlab.losses.unpaired import KTOLoss, UnpairedBCOLoss


# -- pairs
class Logistic(PreferenceLoss):
    """A stranger's DPO, right in all it does; the losses below spoil it."""

    value_at_reference = math.log(2)
    optimum = "rlhf"

    def margin(self, policy, reference):
        return self.beta * log_ratio_difference(policy, reference)

    def per_pair(self, policy, reference):
        return F.softplus(-self.margin(policy, reference))


class SumForMean(Logistic):
    def forward(self, policy, reference=None, *, preference=None, weight=None):
        loss, metrics = super().forward(policy, reference, preference=preference, weight=weight)
        return LossOutput(loss * len(policy.chosen), metrics)


class SignFlipped(Logistic):
    def margin(self, policy, reference):
        return -super().margin(policy, reference)


class ReferenceIgnored(Logistic):
    value_at_reference = None
    optimum = None

    def margin(self, policy, reference):
        return self.beta * (policy.chosen - policy.rejected)


class BatchMeanSubtracted(Logistic):
    def per_pair(self, policy, reference):
        margin = self.margin(policy, reference)
        return F.softplus(-(margin - margin.mean()))


class NeighbourCompared(Logistic):
    optimum = None

    def per_pair(self, policy, reference):
        margin = self.margin(policy, reference)
        return F.softplus(-(margin - 0.5 * margin.roll(1)))


class RunningBaseline(Logistic):
    """A running mean that nothing declares."""

    mean: torch.Tensor

    def __init__(self, beta):
        super().__init__(beta)
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))

    def forward(self, policy, reference=None, *, preference=None, weight=None):
        if self.training:
            self.mean += 0.1 * self.margin(policy, reference).detach().double().mean()
        return super().forward(policy, reference, preference=preference, weight=weight)

    def per_pair(self, policy, reference):
        return F.softplus(self.mean.to(policy.chosen) - self.margin(policy, reference))


class ExpOverflows(Logistic):
    def per_pair(self, policy, reference):
        return torch.log1p(torch.exp(-self.margin(policy, reference)))


class LogOfSigmoid(Logistic):
    def per_pair(self, policy, reference):
        return -torch.log(torch.sigmoid(self.margin(policy, reference)))


class MetricAttached(Logistic):
    def forward(self, policy, reference=None, *, preference=None, weight=None):
        out = super().forward(policy, reference, preference=preference, weight=weight)
        return out._replace(metrics={**out.metrics, "raw": out.loss})


class MetricUnderIf(Logistic):
    def forward(self, policy, reference=None, *, preference=None, weight=None):
        out = super().forward(policy, reference, preference=preference, weight=weight)
        lost = {"lost": out.loss.detach()} if out.metrics["accuracy"] < 1 else {}
        return out._replace(metrics={**out.metrics, **lost})


class MetricOfTheBatch(Logistic):
    def _metrics(self, policy, reference):
        metrics = super()._metrics(policy, reference)
        return {**metrics, "best": metrics["margin"].max().expand_as(metrics["margin"])}


class MetricIsAVector(Logistic):
    def forward(self, policy, reference=None, *, preference=None, weight=None):
        out = super().forward(policy, reference, preference=preference, weight=weight)
        return out._replace(metrics={**out.metrics, "margins": self.margin(policy, reference).detach()})


class LossIsAVector(Logistic):
    def forward(self, policy, reference=None, *, preference=None, weight=None):
        out = super().forward(policy, reference, preference=preference, weight=weight)
        return out._replace(loss=self.per_pair(policy, reference))


class ReferenceReadAllTheSame(Logistic):
    """Says that it needs no reference, and uses one that is given."""

    needs_reference = False
    value_at_reference = None
    optimum = None

    def forward(self, policy, reference=None, *, preference=None, weight=None):
        out = super().forward(policy, preference=preference, weight=weight)
        return out if reference is None else out._replace(loss=out.loss + reference.chosen.mean())

    def per_pair(self, policy, reference):
        return F.softplus(self.beta * (policy.rejected - policy.chosen))


class RewardsLopsided(Logistic):
    """A target margin hidden in the chosen reply's reward: a swap does not negate the difference."""

    value_at_reference = math.log1p(math.exp(0.5))
    optimum = None

    def per_pair(self, policy, reference):
        chosen, rejected = self.implied_rewards(policy, reference)
        return F.softplus(rejected - chosen)

    def implied_rewards(self, policy, reference):
        chosen, rejected = super().implied_rewards(policy, reference)
        return chosen - 0.5, rejected


class Downcast(Logistic):
    def margin(self, policy, reference):
        return super().margin(policy, reference).float()


class RejectedDetached(Logistic):
    def margin(self, policy, reference):
        return super().margin(policy._replace(rejected=policy.rejected.detach()), reference)


class HalfInside(Logistic):
    def forward(self, policy, reference=None, *, preference=None, weight=None):
        margin = self.margin(policy, reference)
        return LossOutput(F.softplus(-margin.bfloat16()).mean().to(margin), {"margin": margin.detach().mean()})


class LengthCounted(Logistic):
    """Per token where shift_invariant says per sequence; the rewards are told right."""

    optimum = None

    def margin(self, policy, reference):
        chosen, rejected = self.implied_rewards(policy, reference)
        return chosen - rejected

    def implied_rewards(self, policy, reference):
        chosen, rejected = super().implied_rewards(policy, reference)
        return chosen / policy.chosen_length, rejected / policy.rejected_length


class RewardsForgotten(Logistic):
    """Per token, declared as such, but the reported rewards are still sums."""

    shift_invariant = False
    optimum = None

    def margin(self, policy, reference):
        chosen = (policy.chosen - reference.chosen) / policy.chosen_length
        return self.beta * (chosen - (policy.rejected - reference.rejected) / policy.rejected_length)


class ValueOfAnotherBeta(IPOLoss):
    def __init__(self, beta):
        super().__init__(beta)
        self.value_at_reference = 1 / (4 * 0.1**2)


class BetaTwice(Logistic):
    def margin(self, policy, reference):
        return 2 * super().margin(policy, reference)


class FormUnknown(Logistic):
    optimum = "dpo"


class WeightIgnored(Logistic):
    def forward(self, policy, reference=None, *, preference=None, weight=None):
        return super().forward(policy, reference, preference=preference)


class LabelUnknown(Logistic):
    def forward(self, policy, reference=None):
        return super().forward(policy, reference)


class ForwardIsElse(Logistic):
    def forward(self, policy, reference=None, *, preference=None, weight=None):
        loss, metrics = super().forward(policy, reference, preference=preference, weight=weight)
        return LossOutput(loss.square(), metrics)


class CoupledAndDeaf(BCOLoss):
    """Takes soft labels and weights and drops them."""

    def forward(self, policy, reference=None, *, preference=None, weight=None):
        return super().forward(policy, reference)


class SFTTermUndeclared(Logistic):
    value_at_reference = None
    optimum = None

    def per_pair(self, policy, reference):
        return super().per_pair(policy, reference) - 0.1 * policy.chosen


# -- replies, scores, tokens
class LabelsIgnored(KTOLoss):
    def forward(self, policy, reference=None, *, kl_policy=None, kl_reference=None):
        policy = policy._replace(desirable=torch.ones_like(policy.desirable))
        return super().forward(policy, reference, kl_policy=kl_policy, kl_reference=kl_reference)


class BaselineOfTheBatch(KTOLoss):
    """Subtracts the mean reward too: mismatched pairs are not all that replies share."""

    def baseline(self, rewards, desirable, kl):
        return super().baseline(rewards, desirable, kl) + rewards.mean()


class KLUnread(UnpairedBCOLoss):
    needs_kl = True


class ScoresOverflow(BradleyTerryLoss):
    def forward(self, chosen_scores, rejected_scores, *, preference=None, weight=None):
        out = super().forward(chosen_scores, rejected_scores, preference=preference, weight=weight)
        return out._replace(loss=out.loss + 0 * torch.exp(rejected_scores - chosen_scores).mean())


class ScoresUnweighted(BradleyTerryLoss):
    def forward(self, chosen_scores, rejected_scores, *, preference=None, weight=None):
        return super().forward(chosen_scores, rejected_scores, preference=preference)


class KLReadAllTheSame(UnpairedBCOLoss):
    def forward(self, policy, reference=None, *, kl_policy=None, kl_reference=None):
        out = super().forward(policy, reference)
        return out if kl_policy is None else out._replace(loss=out.loss + kl_policy.mean())


class ReferenceUnread(UnpairedBCOLoss):
    value_at_reference = None

    def forward(self, policy, reference=None, *, kl_policy=None, kl_reference=None):
        return super().forward(policy, policy._replace(logprobs=0.5 * policy.logprobs.detach()))


class MetricOverPadding(SFTLoss):
    def forward(self, logprobs, mask, *, normalizer=None):
        out = super().forward(logprobs, mask, normalizer=normalizer)
        return out._replace(metrics={"loss": -logprobs.detach().double().sum() / mask.sum().clamp(min=1)})


class MaskMultiplied(SFTLoss):
    def forward(self, logprobs, mask, *, normalizer=None):
        total = -(logprobs.to(torch.promote_types(logprobs.dtype, torch.float32)) * mask).sum()
        loss = total / (mask.sum().clamp(min=1) if normalizer is None else normalizer)
        return LossOutput(loss, {"loss": loss.detach()})


class MeanOverAll(SFTLoss):
    def forward(self, logprobs, mask, *, normalizer=None):
        out = super().forward(logprobs, mask, normalizer=normalizer)
        return out._replace(loss=super().forward(logprobs, mask, normalizer=mask.numel()).loss)


class NormalizerIgnored(ValueLoss):
    def forward(self, values, old_values, returns, mask, *, normalizer=None):
        return super().forward(values, old_values, returns, mask)


class BonusPerBatch(PPOPolicyLoss):
    """The entropy bonus forgets the normalizer, the policy term does not."""

    def forward(self, logprobs, old_logprobs, advantages, mask, *, entropy=None, normalizer=None, weights=None):
        out = super().forward(logprobs, old_logprobs, advantages, mask, normalizer=normalizer, weights=weights)
        assert entropy is not None
        return LossOutput(out.loss - 0.01 * masked_mean(entropy, mask), {**out.metrics, "entropy": out.loss.detach()})


class AdvantageUnmasked(PPOPolicyLoss):
    def forward(self, logprobs, old_logprobs, advantages, mask, *, entropy=None, normalizer=None, weights=None):
        out = super().forward(logprobs, old_logprobs, advantages, mask, normalizer=normalizer, weights=weights)
        return LossOutput(out.loss - logprobs.mean() * 0.01, out.metrics)
