"""Bugs in learning from one's own replies: rewards of tokens, advantages, ratios, penalties, controllers."""

from tests.mutants.mutant import Mutant

EXPERIENCE = ("methods/test_experience.py",)
PPO = ("methods/test_ppo.py",)
GRADIENTS = "methods/test_exact_gradients.py"
POLICY_GRADIENT = "methods/test_policy_gradient.py"
HELD_OUT = ("methods/test_held_out_figures.py",)
ONLINE = ("methods/test_online_dpo.py",)
BASELINES = ("methods/test_baselines.py",)
PENALTY = ("methods/test_kl_penalty.py",)
CONTROLLERS = ("methods/test_controllers.py",)
REFUSES_DROPOUT = ("methods/test_methods.py::test_ppo_refuses_dropout",)
STEPS = ("methods/test_steps.py",)


MUTANTS = (
    # -- one's own replies -------------------------------------------------------------------------------------------
    Mutant(
        "reward one slot late",
        "methods/experience.py",
        "rewards[rows, last] +=",
        "rewards[rows, (last + 1).clamp(max=mask.shape[1] - 1)] +=",
        EXPERIENCE,
    ),
    Mutant(
        "reward in the last column, padding or not",
        "methods/experience.py",
        "last = (positions * mask).amax(-1)",
        "last = positions.amax(-1).expand(len(scores))",
        EXPERIENCE,
    ),
    Mutant(
        "KL penalty paid as a bonus",
        "methods/experience.py",
        "rewards = -kl_coefficient * (logprobs - ref_logprobs) * mask",
        "rewards = kl_coefficient * (logprobs - ref_logprobs) * mask",
        EXPERIENCE,
    ),
    Mutant(
        "minibatches always in the same order",
        "methods/experience.py",
        "order = torch.randperm(len(whole.rows), generator=generator)",
        "order = torch.arange(len(whole.rows))",
        EXPERIENCE,
    ),
    Mutant(
        "replies to one prompt not side by side",
        "methods/experience.py",
        ".repeat_interleave(times)",
        ".repeat(times)",
        EXPERIENCE,
    ),
    Mutant(
        "PPO whitens over padding",
        "methods/ppo.py",
        "centred = (x.double() - mean) * mask",
        "centred = x.double() - mean",
        PPO,
    ),
    Mutant(
        "PPO whitens with a count that has padding in it",
        "methods/ppo.py",
        "count = self.sum_over_processes(mask.sum().double())",
        "count = self.sum_over_processes(torch.ones_like(mask).sum().double())",
        PPO,
    ),
    Mutant(
        "PPO whitens without taking the mean off",
        "methods/ppo.py",
        "return (centred * torch.rsqrt(variance + 1e-8)).to(x.dtype)",
        "return (x.double() * torch.rsqrt(variance + 1e-8)).to(x.dtype)",
        PPO,
    ),
    Mutant(
        "ratio against the sampler's log-probs instead of the training forward's",
        "methods/ppo.py",
        "fixed = (judged.mask, judged.logprobs, judged.values, advantages, returns)",
        "fixed = (judged.mask, rollout.sampler_logprobs, judged.values, advantages, returns)",
        (*STEPS, *PPO),
    ),
    Mutant(
        "PPO's reference at another temperature than the policy",
        "methods/ppo.py",
        "reference = self.reference(sequences, temperature=self.temperature)",
        "reference = self.reference(sequences)",
        HELD_OUT,
    ),
    Mutant(
        "PPO trains at temperature 1 on replies of another",
        "methods/ppo.py",
        'settings = {"temperature": self.temperature, "entropy"',
        'settings = {"temperature": 1.0, "entropy"',
        (*STEPS, *PPO),
    ),
    Mutant(
        "values clipped around themselves: the clip never binds",
        "methods/ppo.py",
        "self.value_loss(values, batch.values, batch.returns, batch.mask)",
        "self.value_loss(values, values.detach(), batch.returns, batch.mask)",
        (*STEPS, *PPO),
    ),
    Mutant(
        "value loss without its coefficient",
        "methods/ppo.py",
        "return LossOutput(self.value_coefficient * value.loss, metrics)",
        "return LossOutput(value.loss, metrics)",
        (*STEPS, *PPO),
    ),
    Mutant(
        "discount forgotten",
        "methods/ppo.py",
        "gamma=self.gamma, gae_lambda",
        "gamma=1.0, gae_lambda",
        (*STEPS, *PPO),
    ),
    Mutant(
        "penalty for a missing end never paid",
        "methods/on_policy.py",
        "            missing_eos_penalty=self.missing_eos_penalty,\n",
        "",
        PPO,
    ),
    Mutant(
        "rollouts at temperature 1 whatever is trained",
        "methods/on_policy.py",
        '"temperature": self.temperature}',
        '"temperature": 1.0}',
        PPO,
    ),
    Mutant(
        "updates stop while the policy is near the sampler, not when it has left",
        "methods/on_policy.py",
        'float(metrics["approx_kl"]) > self.target_kl',
        'float(metrics["approx_kl"]) < self.target_kl',
        (*STEPS, *PPO),
    ),
    Mutant(
        "dropout allowed where the ratio has to start at 1",
        "methods/on_policy.py",
        "if isinstance(rate, float) and rate > 0:",
        "if isinstance(rate, float) and rate > 1:",
        REFUSES_DROPOUT,
    ),
    Mutant(
        "held-out objective that pays for KL",
        "methods/on_policy.py",
        "(scores - self.first_coefficient * kl).sum()",
        "(scores + self.first_coefficient * kl).sum()",
        HELD_OUT,
    ),
    Mutant(
        "step size steered by the KL before the updates",
        "methods/on_policy.py",
        "new = self.policy(part.sequences, temperature=self.temperature).logprobs",
        "new = part.logprobs",
        PPO,
    ),
    Mutant(
        "KL controller with the wrong sign",
        "methods/controllers.py",
        "kl / self.target - 1.0",
        "1.0 - kl / self.target",
        CONTROLLERS,
    ),
    Mutant(
        "step size grows when the policy moves too far",
        "methods/controllers.py",
        "max(self.scale / self.factor, self.minimum)",
        "max(self.scale * self.factor, self.minimum)",
        CONTROLLERS,
    ),
    # -- policy gradients without a critic ---------------------------------------------------------------------------
    Mutant(
        "KL penalty of whole replies added to the reward",
        "methods/policy_gradient.py",
        "rewards = scores - self.kl.coefficient * price",
        "rewards = scores + self.kl.coefficient * price",
        (POLICY_GRADIENT, GRADIENTS),
    ),
    Mutant(
        "mean over tokens where a sum over the reply was asked for",
        "methods/policy_gradient.py",
        '"sum": lambda lengths, mean_length, longest: mean_length,',
        '"sum": lambda lengths, mean_length, longest: 1.0,',
        (POLICY_GRADIENT, GRADIENTS),
    ),
    Mutant(
        "Dr. GRPO divides by the reply's own length",
        "methods/policy_gradient.py",
        "mean_length / longest",
        "mean_length / lengths",
        (POLICY_GRADIENT, GRADIENTS),
    ),
    Mutant(
        "KL loss without the weights of the replies",
        "methods/policy_gradient.py",
        "(batch.weights * prices).sum()",
        "prices.sum()",
        (POLICY_GRADIENT, GRADIENTS),
    ),
    Mutant(
        "KL loss divided by replies, the objective by tokens",
        "methods/policy_gradient.py",
        "penalty = (batch.weights * prices).sum() / batch.mask.sum().clamp(min=1)",
        "penalty = (batch.weights * prices).mean()",
        (POLICY_GRADIENT, GRADIENTS),
    ),
    Mutant(
        "GRPO trains at temperature 1 on replies of another",
        "methods/policy_gradient.py",
        "self.scored(self.policy, batch, self.loss_of, temperature=self.temperature, entropy=wants_entropy)",
        "self.scored(self.policy, batch, self.loss_of, entropy=wants_entropy)",
        (POLICY_GRADIENT, GRADIENTS),
    ),
    Mutant(
        "reference at another temperature than the policy",
        "methods/on_policy.py",
        "reference = self.reference(sequences, temperature=self.temperature)",
        "reference = self.reference(sequences)",
        (*ONLINE, GRADIENTS),
    ),
    Mutant(
        "KL of whole replies summed after the estimator instead of before",
        "methods/kl_penalty.py",
        'if self.per == "sequence":',
        'if self.per == "token":',
        PENALTY,
    ),
    Mutant(
        "KL penalty over padding",
        "methods/kl_penalty.py",
        "logprobs, ref_logprobs = torch.where(mask, logprobs, 0.0), torch.where(mask, ref_logprobs, 0.0)",
        "logprobs, ref_logprobs = logprobs * 1.0, ref_logprobs * 1.0",
        PENALTY,
    ),
    Mutant(
        "running baseline that has seen the reply it is compared with",
        "methods/baselines.py",
        "return rewards - past",
        "return rewards - self.mean",
        BASELINES,
    ),
    Mutant(
        "Dr. GRPO's baseline leaves the reply out",
        "methods/baselines.py",
        " * ((group_size - 1) / group_size)",
        "",
        BASELINES,
    ),
    # -- pairs of one's own ------------------------------------------------------------------------------------------
    Mutant(
        "online DPO prefers the lower score",
        "methods/online_dpo.py",
        "gap = scores[0::2] - scores[1::2]",
        "gap = scores[1::2] - scores[0::2]",
        ONLINE,
    ),
    Mutant(
        "online DPO pairs replies to different prompts",
        "methods/online_dpo.py",
        "order = torch.cat([index[0::2], index[1::2]])",
        "order = index",
        ONLINE,
    ),
    Mutant(
        "online DPO's reference sums left in the rollout's order",
        "methods/online_dpo.py",
        "reference = judged.ref_logprobs.sum(-1)[order]",
        "reference = judged.ref_logprobs.sum(-1)",
        ONLINE,
    ),
    Mutant(
        "online DPO trains at temperature 1 on replies of another",
        "methods/online_dpo.py",
        "is_separable=self.loss.is_separable, temperature=self.temperature",
        "is_separable=self.loss.is_separable",
        ONLINE,
    ),
    Mutant(
        "online DPO calls a tie a win of the first reply",
        "methods/online_dpo.py",
        "torch.heaviside(gap, gap.new_tensor(0.5))",
        "torch.heaviside(gap, gap.new_tensor(1.0))",
        ONLINE,
    ),
    Mutant(
        "a subclass of PPO with a loss of its own trains by PPO's",
        "methods/base.py",
        'if cls.__mro__.index(definer["compute"]) < cls.__mro__.index(definer["terms"]):',
        "if False:",
        PPO,
    ),
)
