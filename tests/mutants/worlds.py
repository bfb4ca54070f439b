"""Bugs in the exact world, whose figures judge everything else."""

from tests.mutants.mutant import Mutant

WORLD = ("worlds/test_exact.py",)
TREE = ("worlds/test_exact_tree.py",)
SOURCE = ("worlds/test_exact_source.py",)

MUTANTS = (
    Mutant(
        "optimum with the reward times beta",
        "worlds/exact/world.py",
        "return self.ref_logprobs + self.rewards / self.beta - self.log_partition",
        "return self.ref_logprobs + self.rewards * self.beta - self.log_partition",
        WORLD,
    ),
    Mutant(
        "objective that pays for KL",
        "worlds/exact/world.py",
        "return self.expected_reward(logprobs) - self.beta * self.kl(logprobs)",
        "return self.expected_reward(logprobs) + self.beta * self.kl(logprobs)",
        WORLD,
    ),
    Mutant(
        "KL in the other direction",
        "worlds/exact/world.py",
        "return (logprobs.exp() * (logprobs - other)",
        "return (other.exp() * (other - logprobs)",
        WORLD,
    ),
    Mutant(
        "exact values: KL paid to the policy",
        "worlds/exact/world.py",
        "-cost * torch.where(own.exp() > 0",
        "cost * torch.where(own.exp() > 0",
        TREE,
    ),
    Mutant(
        "IPO's closed form with tau upside down",
        "worlds/exact/world.py",
        "self.win_rates(mu) / tau",
        "self.win_rates(mu) * tau",
        (*TREE, *WORLD),
    ),
    Mutant(
        "pairs of the population all weighted alike",
        "worlds/exact/world.py",
        "logits = drawn[..., first] + drawn[..., second]",
        "logits = 0 * drawn[..., first] + 0 * drawn[..., second]",
        WORLD,
    ),
    Mutant(
        "preferences with chosen and rejected exchanged",
        "worlds/exact/world.py",
        "(self.rewards[..., first] - self.rewards[..., second]).sigmoid()",
        "(self.rewards[..., second] - self.rewards[..., first]).sigmoid()",
        WORLD,
    ),
    Mutant(
        "values under a uniform policy",
        "worlds/exact/tree.py",
        "ahead = torch.where(weights > 0, weights * action_value, 0.0).sum(-1)",
        "ahead = action_value.mean(-1)",
        TREE,
    ),
    Mutant(
        "lengths that leave out the end token",
        "worlds/exact/tree.py",
        "ends = [min(depth + 1, self.max_length)",
        "ends = [max(depth, 1)",
        (*TREE, *WORLD, *SOURCE),
    ),
    Mutant(
        "end token joined at the front whatever its id",
        "worlds/exact/tree.py",
        "return torch.cat([before, at_eos.unsqueeze(-1), after], -1)",
        "return torch.cat([at_eos.unsqueeze(-1), before, after], -1)",
        TREE,
    ),
    Mutant(
        "end token of a response not scored by the network",
        "worlds/exact/network.py",
        "tokens.masked_fill(~is_real, IGNORE)], 1)",
        "tokens.masked_fill(~is_real | (tokens == world.eos_id), IGNORE)], 1)",
        SOURCE,
    ),
    Mutant(
        "flipped labels the wrong way round",
        "worlds/exact/source.py",
        "return (1 - self.flip_rate) * wins + self.flip_rate * (1 - wins)",
        "return self.flip_rate * wins + (1 - self.flip_rate) * (1 - wins)",
        SOURCE,
    ),
    Mutant(
        "judges that like short replies",
        "worlds/exact/source.py",
        "self.length_bias * (lengths[first] - lengths[second])",
        "self.length_bias * (lengths[second] - lengths[first])",
        SOURCE,
    ),
    Mutant(
        "equal draws kept as pairs",
        "worlds/exact/source.py",
        "while bool((same := first == second).any()):",
        "while bool((same := first == second).all()):",
        SOURCE,
    ),
    Mutant(
        "pairs drawn from the world's own policy, not from the one that is given",
        "worlds/exact/source.py",
        "self.world = world if reference is None else world.with_reference(_logprobs_of(reference, world))",
        "self.world = world",
        SOURCE,
    ),
)
