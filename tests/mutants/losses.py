"""Bugs in losses over tokens, single replies and scores: PPO, values, SFT, KTO, BCO, reward models."""

from tests.mutants.mutant import Mutant, contract

PPO = (contract("method=ppo"), "losses/test_policy_losses.py")
DAPO = (contract("method=dapo"), "losses/test_policy_losses.py")
SFT = (contract("method=sft"), "losses/test_sft_loss.py")
KTO = (contract("method/loss=kto"), "losses/test_unpaired_losses.py")
BCO = (contract("method/loss=bco_unpaired"), "losses/test_unpaired_losses.py")
REWARD = (contract("method=reward"), "losses/test_reward_loss.py")

MUTANTS = (
    # -- what all share ----------------------------------------------------------------------------------------------
    Mutant(
        "the step's number of tokens ignored: each micro-batch divides by its own",
        "losses/base.py",
        "return masked_mean(x, mask) if normalizer is None else masked_sum(x, mask) / normalizer",
        "return masked_mean(x, mask)",
        SFT,
    ),
    Mutant(
        "sum over tokens for their mean",
        "losses/base.py",
        "return masked_mean(x, mask) if normalizer is None",
        "return masked_sum(x, mask) if normalizer is None",
        SFT,
    ),
    Mutant(
        "weights of pairs ignored",
        "losses/base.py",
        "return (weight * x).sum() / weight.sum()",
        "return x.mean()",
        (contract("method/loss=dpo"), "losses/test_preference_losses.py"),
    ),
    Mutant(
        "weighted sum divided by the number of pairs",
        "losses/base.py",
        "return (weight * x).sum() / weight.sum()",
        "return (weight * x).sum() / len(weight)",
        (contract("method/loss=dpo"), "losses/test_preference_losses.py"),
    ),
    Mutant(
        "running mean that counts without its weights",
        "losses/running.py",
        "self.count += weight.double().sum()",
        "self.count += x.numel()",
        ("losses/test_anchored_losses.py", "losses/test_unpaired_losses.py"),
    ),
    # -- policies and values -----------------------------------------------------------------------------------------
    Mutant(
        "PPO's min taken for a max",
        "losses/policy.py",
        "torch.minimum(ratio * advantages, clipped * advantages)",
        "torch.maximum(ratio * advantages, clipped * advantages)",
        PPO,
    ),
    Mutant(
        "ratio clipped on one side only",
        "losses/policy.py",
        "ratio.clamp(1 - self.clip_range, 1 + self.clip_range_high)",
        "ratio.clamp(max=1 + self.clip_range_high)",
        PPO,
    ),
    Mutant(
        "clip-higher ignored",
        "losses/policy.py",
        "ratio.clamp(1 - self.clip_range, 1 + self.clip_range_high)",
        "ratio.clamp(1 - self.clip_range, 1 + self.clip_range)",
        DAPO,
    ),
    Mutant(
        "ratio upside down (old policy over new)",
        "losses/policy.py",
        "upcast(logprobs) - upcast(old_logprobs).detach()",
        "upcast(old_logprobs).detach() - upcast(logprobs)",
        PPO,
    ),
    Mutant(
        "gradient through the old policy's log-probs",
        "losses/policy.py",
        "- upcast(old_logprobs).detach()",
        "- upcast(old_logprobs)",
        PPO,
    ),
    Mutant(
        "gradient through the advantages",
        "losses/policy.py",
        "torch.where(mask, upcast(advantages).detach(), 0.0)",
        "torch.where(mask, upcast(advantages), 0.0)",
        PPO,
    ),
    Mutant(
        "entropy bonus as a penalty",
        "losses/policy.py",
        "loss = loss - self.entropy_coefficient * token_mean",
        "loss = loss + self.entropy_coefficient * token_mean",
        PPO,
    ),
    Mutant(
        "weights of tokens ignored by the policy loss",
        "losses/policy.py",
        "return x if weights is None else upcast(x) * weights",
        "return x",
        PPO,
    ),
    Mutant(
        "clipped value error: the smaller of the two",
        "losses/policy.py",
        "squares = torch.maximum((values - returns)",
        "squares = torch.minimum((values - returns)",
        PPO,
    ),
    Mutant(
        "values clipped around the returns instead of the old values",
        "losses/policy.py",
        "values.clamp(old_values - self.clip_range, old_values + self.clip_range)",
        "values.clamp(returns - self.clip_range, returns + self.clip_range)",
        PPO,
    ),
    Mutant(
        "what stands at padding left in the value error: NaN in the gradient",
        "losses/policy.py",
        "values = torch.where(mask, upcast(values), 0.0)",
        "values = upcast(values)",
        PPO,
    ),
    Mutant(
        "value error without its half",
        "losses/policy.py",
        "0.5 * token_mean(squares, mask, normalizer)",
        "token_mean(squares, mask, normalizer)",
        PPO,
    ),
    Mutant(
        "likelihood minimised instead of maximised",
        "losses/sft.py",
        "nll = -logprobs",
        "nll = logprobs",
        SFT,
    ),
    # -- single replies ----------------------------------------------------------------------------------------------
    Mutant(
        "KTO's KL estimate not kept above zero",
        "losses/unpaired.py",
        ".detach().mean().clamp(min=0)",
        ".detach().mean()",
        KTO,
    ),
    Mutant(
        "gradient through KTO's KL estimate",
        "losses/unpaired.py",
        ".detach().mean().clamp(min=0)",
        ".mean().clamp(min=0)",
        KTO,
    ),
    Mutant(
        "KTO's KL estimate without beta",
        "losses/unpaired.py",
        "return self.beta * kl",
        "return kl",
        KTO,
    ),
    Mutant(
        "undesirable replies pushed up too",
        "losses/unpaired.py",
        "torch.where(desirable, rewards - baseline, baseline - rewards)",
        "torch.where(desirable, rewards - baseline, rewards - baseline)",
        KTO,
    ),
    Mutant(
        "KTO's weights of the two labels exchanged",
        "losses/unpaired.py",
        "torch.where(desirable, self.desirable_weight * losses, self.undesirable_weight * losses)",
        "torch.where(desirable, self.undesirable_weight * losses, self.desirable_weight * losses)",
        KTO,
    ),
    Mutant(
        "running mean of BCO moved by held-out data",
        "losses/unpaired.py",
        "if self.training:",
        "if True:",
        BCO,
    ),
    # -- scores ------------------------------------------------------------------------------------------------------
    Mutant(
        "margin of the reward model's loss with the wrong sign",
        "losses/reward.py",
        "loss = -F.logsigmoid(chosen - rejected - self.margin)",
        "loss = -F.logsigmoid(chosen - rejected + self.margin)",
        REWARD,
    ),
    Mutant(
        "soft label of a pair of scores with the wrong sign",
        "losses/reward.py",
        "loss = p * loss - (1 - p) *",
        "loss = p * loss + (1 - p) *",
        REWARD,
    ),
    Mutant(
        "centering of scores acts on their difference",
        "losses/reward.py",
        "self.center * (chosen + rejected).square()",
        "self.center * (chosen - rejected).square()",
        REWARD,
    ),
    Mutant(
        "ties counted as right",
        "losses/reward.py",
        "torch.heaviside(gap, gap.new_tensor(0.5))",
        "torch.heaviside(gap, gap.new_tensor(1.0))",
        REWARD,
    ),
)
