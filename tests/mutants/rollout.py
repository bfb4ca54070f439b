"""Bugs in sampling, scoring and rewards."""

from tests.mutants.mutant import Mutant

SAMPLING = ("rollout/test_sampling.py",)
GENERATE = ("rollout/test_generate.py",)
SCORING = ("rollout/test_scoring.py",)
REWARDS = ("rollout/test_rewards.py",)

MUTANTS = (
    Mutant(
        "temperature forgotten in sampling",
        "rollout/sampling.py",
        "scaled = logits.float() / temperature",
        "scaled = logits.float()",
        SAMPLING,
    ),
    Mutant(
        "temperature multiplied instead of divided by",
        "rollout/sampling.py",
        "scaled = logits.float() / temperature",
        "scaled = logits.float() * temperature",
        SAMPLING,
    ),
    Mutant(
        "top-k keeps one token too many",
        "rollout/sampling.py",
        "scaled.topk(top_k, dim=-1)",
        "scaled.topk(top_k + 1, dim=-1)",
        SAMPLING,
    ),
    Mutant(
        "top-p drops the token that reaches the mass",
        "rollout/sampling.py",
        "beyond = (mass - ordered.softmax(-1)) >= top_p",
        "beyond = mass >= top_p",
        SAMPLING,
    ),
    Mutant(
        "log-probs of the distribution before top-k and top-p",
        "rollout/sampling.py",
        "return scaled.log_softmax(-1)",
        "return (logits.float() / temperature).log_softmax(-1).masked_fill(scaled == -torch.inf, -torch.inf)",
        SAMPLING,
    ),
    Mutant(
        "stop token left out of the reply's mask",
        "rollout/generate.py",
        "self.mask[rows, step] = True",
        "self.mask[rows, step] = ~torch.isin(tokens, self.stops)",
        GENERATE,
    ),
    Mutant(
        "finished rows go on sampling",
        "rollout/generate.py",
        "self.going = self.going.masked_scatter(self.going, ~stopped)",
        "self.going = self.going.clone()",
        GENERATE,
    ),
    Mutant(
        "only the first stop token stops",
        "rollout/generate.py",
        "stopped = torch.isin(tokens, self.stops)",
        "stopped = torch.isin(tokens, self.stops[:1])",
        GENERATE,
    ),
    Mutant(
        "dropout on in rollouts",
        "rollout/generate.py",
        "with evaluating(policy.model):",
        "with torch.no_grad():",
        GENERATE,
    ),
    Mutant(
        "random numbers by place among the unfinished rows",
        "rollout/generate.py",
        "uniform[decoder.live, step]",
        "uniform[: len(decoder.live), step]",
        GENERATE,
    ),
    Mutant(
        "positions stand still while a reply is written",
        "rollout/generate.py",
        "self.positions = self.positions[:, -1:] + 1",
        "self.positions = self.positions[:, -1:]",
        GENERATE,
    ),
    Mutant(
        "left padding attended to in generation",
        "rollout/generate.py",
        "self.attention[:, :width] = prompts.attention_mask",
        "self.attention[:, :width] = True",
        GENERATE,
    ),
    Mutant(
        "sampler's log-probs one place late",
        "rollout/generate.py",
        "start = prompt_ids.shape[1] - 1",
        "start = prompt_ids.shape[1]",
        GENERATE,
    ),
    Mutant(
        "prompt tokens scored in a rollout",
        "rollout/generate.py",
        "labels=torch.cat([torch.full_like(prompt_ids, IGNORE), labels], 1)",
        "labels=torch.cat([prompt_ids, labels], 1)",
        GENERATE,
    ),
    Mutant(
        "text of the stop token handed to the reward",
        "rollout/generate.py",
        "lengths = (replies.mask.sum(1) - replies.complete.long()).tolist()",
        "lengths = replies.mask.sum(1).tolist()",
        GENERATE,
    ),
    Mutant(
        "penalty for a missing end paid by the replies that have ended",
        "rollout/scoring.py",
        "missing_eos_penalty * (~rollout.complete).float()",
        "missing_eos_penalty * rollout.complete.float()",
        SCORING,
    ),
    Mutant(
        "penalty for a missing end paid as a reward",
        "rollout/scoring.py",
        "return scores - missing_eos_penalty",
        "return scores + missing_eos_penalty",
        SCORING,
    ),
    Mutant(
        "fixed score of unfinished replies given to the finished ones",
        "rollout/scoring.py",
        "scores.masked_fill(~rollout.complete, missing_eos_score)",
        "scores.masked_fill(rollout.complete, missing_eos_score)",
        SCORING,
    ),
    Mutant(
        "reward model's scores in order of length",
        "rollout/rewards/model.py",
        "scores[index] = reward_model",
        "scores[start : start + len(index)] = reward_model",
        REWARDS,
    ),
    Mutant(
        "reward model's scale forgotten in the reward",
        "rollout/rewards/model.py",
        "reward_model.normalized(reward_model(sequences))",
        "reward_model(sequences)",
        REWARDS,
    ),
    Mutant(
        "weights of several rewards ignored",
        "rollout/rewards/weighted.py",
        "self.weights[name] * scores for",
        "scores for",
        REWARDS,
    ),
)
