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
        "scaled = upcast(logits) / temperature",
        "scaled = upcast(logits)",
        SAMPLING,
    ),
    Mutant(
        "temperature multiplied instead of divided by",
        "rollout/sampling.py",
        "scaled = upcast(logits) / temperature",
        "scaled = upcast(logits) * temperature",
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
        "return (upcast(logits) / temperature).log_softmax(-1).masked_fill(scaled == -torch.inf, -torch.inf)",
        SAMPLING,
    ),
    Mutant(
        "stop token left out of the reply's mask",
        "rollout/generate.py",
        "self.mask[rows, step] = True",
        "self.mask[rows, step] = ~torch.isin(choice.tokens, self.stops)",
        GENERATE,
    ),
    Mutant(
        "finished rows go on sampling",
        "rollout/generate.py",
        "        self.live = rows[kept]\n        return kept",
        "        return None",
        GENERATE,
    ),
    Mutant(
        "only the first stop token stops",
        "rollout/generate.py",
        "stopped = torch.isin(choice.tokens, self.stops)",
        "stopped = torch.isin(choice.tokens, self.stops[:1])",
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
        "uniform[writer.live, step]",
        "uniform[: len(writer.live), step]",
        GENERATE,
    ),
    Mutant(
        "tokens of the rows that have ended read in place of those that go on",
        "rollout/generate.py",
        "tokens = tokens[kept]",
        "tokens = tokens[: len(kept)]",
        GENERATE,
    ),
    Mutant(
        "large vocabularies: the place inside a block sought by the whole distribution",
        "rollout/sampling.py",
        "_passing(inside.cumsum(-1), sought - before)",
        "_passing(inside.cumsum(-1), sought)",
        SAMPLING,
    ),
    Mutant(
        "a token of probability zero drawn where the number falls on its edge",
        "rollout/sampling.py",
        "sought.minimum(below_total), right=True)",
        "sought.minimum(below_total))",
        SAMPLING,
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
