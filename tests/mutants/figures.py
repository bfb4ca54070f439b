"""Bugs in what is published: intervals, win rates, divergences and accuracies of trained models."""

from tests.mutants.mutant import Mutant

STATISTICS = ("test_statistics.py",)
POLICY = ("evaluate/test_evaluate_policy.py",)
COMPARISON = ("evaluate/test_comparison.py",)
REWARD = ("evaluate/test_evaluate_reward.py",)
PAIRS = ("evaluate/test_pairs.py",)
EXACT = ("evaluate/test_exact_figures.py",)

MUTANTS = (
    Mutant(
        "normal quantile for Student's t",
        "statistics.py",
        "half = float(stdtrit(count - 1, 0.5 + confidence / 2)) * stderr",
        "half = 1.959964 * stderr",
        STATISTICS,
    ),
    Mutant(
        "biased variance in an interval",
        "statistics.py",
        "for value in values) / (count - 1)",
        "for value in values) / count",
        STATISTICS,
    ),
    Mutant(
        "Wald's interval of a share for Wilson's",
        "statistics.py",
        "half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / scale",
        "half = z * math.sqrt(share * (1 - share) / count)",
        STATISTICS,
    ),
    Mutant(
        "ties counted as wins",
        "statistics.py",
        "0.5 if mine == other",
        "1.0 if mine == other",
        STATISTICS,
    ),
    Mutant(
        "bootstrap that forgets which scores belong together",
        "statistics.py",
        "means = differences[chosen].mean(axis=1)",
        "means = np.asarray(ours)[chosen].mean(axis=1) - np.asarray(theirs)[chosen[::-1]].mean(axis=1)",
        STATISTICS,
    ),
    Mutant(
        "prompts matched by row number alone",
        "statistics.py",
        '(sample.get("row"), json.dumps(sample["prompt"], sort_keys=True))',
        'sample.get("row")',
        STATISTICS,
    ),
    Mutant(
        "sign of the KL to the reference",
        "evaluate/policy.py",
        "kl = (logprobs.double() - ref_logprobs.double()).sum(1)",
        "kl = (ref_logprobs.double() - logprobs.double()).sum(1)",
        POLICY,
    ),
    Mutant(
        "KL averaged over the columns of the batch",
        "evaluate/policy.py",
        "kl = (logprobs.double() - ref_logprobs.double()).sum(1)",
        "kl = (logprobs.double() - ref_logprobs.double()).mean(1)",
        POLICY,
    ),
    Mutant(
        "KL of a tempered policy against the untempered reference",
        "evaluate/policy.py",
        "ref_logprobs = reference(sequences, temperature=temperature)",
        "ref_logprobs = reference(sequences, temperature=1.0)",
        POLICY,
    ),
    Mutant(
        "replies to one prompt taken for independent ones",
        "evaluate/policy.py",
        "return [math.fsum(replies) / len(replies) for replies in found]",
        "return list(values)",
        POLICY,
    ),
    Mutant(
        "perplexity per reply instead of per token",
        "evaluate/policy.py",
        "math.exp(-tally.reference_logprob / max(1, tally.tokens))",
        "math.exp(-tally.reference_logprob / len(samples))",
        POLICY,
    ),
    Mutant(
        "policy evaluated in training mode",
        "evaluate/policy.py",
        "with torch.no_grad(), evaluating(policy):",
        "with torch.no_grad():",
        POLICY,
    ),
    Mutant(
        "win rate of the baseline reported as the policy's",
        "evaluate/comparison.py",
        "wins[_key(mine)].append(verdict.value)",
        "wins[_key(mine)].append(1 - verdict.value)",
        COMPARISON,
    ),
    Mutant(
        "ties of a reward model counted as right",
        "evaluate/pairs.py",
        "0.5 if margin == 0 else 0.0",
        "1.0 if margin == 0 else 0.0",
        REWARD,
    ),
    Mutant(
        "a reward model's pairs of one prompt counted as if they were independent",
        "evaluate/pairs.py",
        "return clustered_share_interval(rights, _independent(facts, len(rights)))",
        "return clustered_share_interval(rights, range(len(rights)))",
        PAIRS,
    ),
    Mutant(
        "facts of pairs by their place in the batch, not by their row",
        "evaluate/preference.py",
        "[facts[row] for row in rows]",
        "[facts[row] for row, _ in enumerate(rows)]",
        ("evaluate/test_preference.py",),
    ),
    Mutant(
        "no allowance for few clusters",
        "statistics.py",
        "number / effect * (by_values / by_clusters) ** 2",
        "number / effect",
        STATISTICS,
    ),
    Mutant(
        "the error of a length-controlled win rate with the normal quantile",
        "evaluate/length_control.py",
        "half = float(stdtrit(freedom, 0.5 + confidence / 2)) * stderr",
        "half = 1.959964 * stderr",
        ("evaluate/test_length_control.py",),
    ),
    Mutant(
        "calibration by the probability of the chosen reply, not of the bet",
        "evaluate/reward.py",
        "1 / (1 + math.exp(-abs(margin)))",
        "max(0.5, 1 / (1 + math.exp(-margin)))",
        REWARD,
    ),
    Mutant(
        "calibration error that counts bins alike",
        "evaluate/reward.py",
        "each.count * abs(each.accuracy - each.confidence)",
        "abs(each.accuracy - each.confidence)",
        REWARD,
    ),
    Mutant(
        "exact regret against the world's reference, not the run's",
        "evaluate/exact.py",
        "world = world.with_reference(_normalised(world, ref_logprobs))",
        "_normalised(world, ref_logprobs)",
        EXACT,
    ),
    Mutant(
        "exact figures of the first step repeated: the policy is not read again",
        "evaluate/exact.py",
        "figures = exact_figures(self._world, logprobs, self._ref_logprobs)",
        "figures = exact_figures(self._world, self._ref_logprobs, self._ref_logprobs)",
        EXACT,
    ),
    Mutant(
        "exact figures: the reference moves with the policy",
        "evaluate/exact.py",
        "if self._ref_logprobs is None:",
        "if True:",
        EXACT,
    ),
    Mutant(
        "exact figures of a reward model: its scores taken for the true rewards",
        "evaluate/exact.py",
        "**exact_figures(self._world, aimed_at, self._world.ref_logprobs)",
        "**exact_figures(self._world.with_rewards(scores, 1.0), aimed_at, self._world.ref_logprobs)",
        EXACT,
    ),
)
