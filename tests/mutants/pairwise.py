"""Bugs in losses over pairs: DPO and its kin."""

from tests.mutants.mutant import Mutant, contract

DPO = (contract("method/loss=dpo"), "losses/test_preference_losses.py", "losses/test_pairwise_claims.py")


def tests_of(option: str, file: str) -> tuple[str, str, str]:
    """The contracts of the loss, the numbers worked by hand, the twins of all."""
    return contract(f"method/loss={option}"), f"losses/{file}.py", "losses/test_pairwise_claims.py"


MUTANTS = (
    # -- DPO and what all pairwise losses share ----------------------------------------------------------------------
    Mutant(
        "DPO without beta",
        "losses/preference.py",
        "margin = self.beta * log_ratio_difference(policy, reference)",
        "margin = log_ratio_difference(policy, reference)",
        DPO,
    ),
    Mutant(
        "chosen and rejected exchanged in the margin",
        "losses/preference.py",
        "return (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)",
        "return (policy.rejected - reference.rejected) - (policy.chosen - reference.chosen)",
        DPO,
    ),
    Mutant(
        "reference of the chosen reply used for the rejected one and vice versa",
        "losses/preference.py",
        "return (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)",
        "return (policy.chosen - reference.rejected) - (policy.rejected - reference.chosen)",
        DPO,
    ),
    Mutant(
        "reference left out of the rejected reply",
        "losses/preference.py",
        "return (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)",
        "return (policy.chosen - reference.chosen) - policy.rejected",
        DPO,
    ),
    Mutant(
        "label smoothing with the wrong sign",
        "losses/preference.py",
        "F.logsigmoid(margin) - self.label_smoothing * F.logsigmoid(-margin)",
        "F.logsigmoid(margin) + self.label_smoothing * F.logsigmoid(-margin)",
        tests_of("cdpo", "test_preference_losses"),
    ),
    Mutant(
        "robust DPO with the sign of conservative DPO",
        "losses/preference.py",
        "F.logsigmoid(margin) + flipped * F.logsigmoid(-margin)",
        "F.logsigmoid(margin) - flipped * F.logsigmoid(-margin)",
        tests_of("robust", "test_preference_losses"),
    ),
    Mutant(
        "robust DPO without its factor 1 / (1 - 2e)",
        "losses/preference.py",
        "return kept / (1 - 2 * flipped)",
        "return kept",
        tests_of("robust", "test_preference_losses"),
    ),
    Mutant(
        "soft label p taken for 1 - p",
        "losses/preference.py",
        "return preference * kept + (1 - preference) * swapped",
        "return (1 - preference) * kept + preference * swapped",
        DPO,
    ),
    Mutant(
        "soft label turns the pair round but not its reference",
        "losses/preference.py",
        "policy, reference = policy.swapped(), None if reference is None else reference.swapped()",
        "policy = policy.swapped()",
        DPO,
    ),
    Mutant(
        "metrics under soft labels are those of the stated order",
        "losses/preference.py",
        "_mixed(preference, value, other[name])",
        "value",
        DPO,
    ),
    Mutant(
        "lengths not exchanged with their replies",
        "losses/preference.py",
        "PairLogprobs(self.rejected, self.chosen, self.rejected_length, self.chosen_length)",
        "PairLogprobs(self.rejected, self.chosen, self.chosen_length, self.rejected_length)",
        tests_of("simpo", "test_preference_losses"),
    ),
    Mutant(
        "IPO's target twice too large",
        "losses/preference.py",
        "- 1 / (2 * self.beta)).square()",
        "- 1 / self.beta).square()",
        tests_of("ipo", "test_preference_losses"),
    ),
    Mutant(
        "IPO on means over tokens instead of sums",
        "losses/preference.py",
        "if self.length_normalized:",
        "if not self.length_normalized:",
        tests_of("ipo", "test_preference_losses"),
    ),
    Mutant(
        "hinge at 0 instead of 1",
        "losses/preference.py",
        "F.relu(1 - self.beta * log_ratio_difference",
        "F.relu(-self.beta * log_ratio_difference",
        tests_of("hinge", "test_preference_losses"),
    ),
    Mutant(
        "SimPO's target margin with the wrong sign",
        "losses/preference.py",
        "chosen - rejected - self.gamma",
        "chosen - rejected + self.gamma",
        tests_of("simpo", "test_preference_losses"),
    ),
    Mutant(
        "SimPO divides both replies by the chosen one's length",
        "losses/preference.py",
        "self.beta * policy.rejected / policy.rejected_length",
        "self.beta * policy.rejected / policy.chosen_length",
        tests_of("simpo", "test_preference_losses"),
    ),
    # -- other curves of the margin ----------------------------------------------------------------------------------
    Mutant(
        "length-normalised DPO divides both replies by the chosen one's length",
        "losses/margin.py",
        "rejected / policy.rejected_length",
        "rejected / policy.chosen_length",
        tests_of("dpo_length_normalized", "test_margin_losses"),
    ),
    Mutant(
        "EXO divides both outcomes by the same label probability",
        "losses/margin.py",
        "flipped - math.log(self.label_smoothing)",
        "flipped - math.log1p(-self.label_smoothing)",
        tests_of("exo", "test_margin_losses"),
    ),
    Mutant(
        "DiscoPOP's blend the wrong way round",
        "losses/margin.py",
        "torch.sigmoid(-margin / self.tau) *",
        "torch.sigmoid(margin / self.tau) *",
        tests_of("discopop", "test_margin_losses"),
    ),
    Mutant(
        "f-DPO's forward KL with the wrong sign",
        "losses/f_divergence.py",
        "return 1 - _bounded_exp(-log_ratio)",
        "return _bounded_exp(-log_ratio) - 1",
        tests_of("f_dpo_forward_kl", "test_margin_losses"),
    ),
    Mutant(
        "f-DPO's alpha-divergence without 1 / alpha",
        "losses/f_divergence.py",
        "return (1 - _bounded_exp(-self.alpha * log_ratio)) / self.alpha",
        "return 1 - _bounded_exp(-self.alpha * log_ratio)",
        tests_of("f_dpo_alpha", "test_margin_losses"),
    ),
    # -- each reply against the reference ----------------------------------------------------------------------------
    Mutant(
        "NCA weighs the rejected reply twice",
        "losses/anchored.py",
        "- 0.5 * F.logsigmoid(-rejected)",
        "- F.logsigmoid(-rejected)",
        tests_of("nca", "test_anchored_losses"),
    ),
    Mutant(
        "SPPO pulls both replies up",
        "losses/anchored.py",
        "(rejected + target).square()",
        "(rejected - target).square()",
        tests_of("sppo_hard", "test_anchored_losses"),
    ),
    Mutant(
        "APO-zero pushes the chosen reply down",
        "losses/anchored.py",
        "torch.sigmoid(-chosen) + torch.sigmoid(rejected)",
        "torch.sigmoid(chosen) + torch.sigmoid(rejected)",
        tests_of("apo_zero", "test_anchored_losses"),
    ),
    Mutant(
        "APO-down with its margin the wrong way round",
        "losses/anchored.py",
        "torch.sigmoid(rejected - chosen)",
        "torch.sigmoid(chosen - rejected)",
        tests_of("apo_down", "test_anchored_losses"),
    ),
    Mutant(
        "BCO's baseline is the mean of the chosen rewards alone",
        "losses/anchored.py",
        "self.delta.update((chosen + rejected) / 2, weight)",
        "self.delta.update(chosen, weight)",
        tests_of("bco", "test_anchored_losses"),
    ),
    # -- whole batches, and without a reference ----------------------------------------------------------------------
    Mutant(
        "AOT sorts one of the two samples only",
        "losses/ordering.py",
        "rejected = (policy.rejected - reference.rejected).sort().values",
        "rejected = policy.rejected - reference.rejected",
        tests_of("aot_unpaired", "test_ordering_losses"),
    ),
    Mutant(
        "ORPO's odds p (1 - p) instead of p / (1 - p)",
        "losses/reference_free.py",
        "return logprob - torch.log(-torch.expm1(logprob))",
        "return logprob + torch.log(-torch.expm1(logprob))",
        tests_of("orpo", "test_reference_free_losses"),
    ),
    Mutant(
        "ORPO's odds of the whole reply instead of its mean token",
        "losses/reference_free.py",
        "_log_odds(policy.chosen / policy.chosen_length)",
        "_log_odds(policy.chosen)",
        tests_of("orpo", "test_reference_free_losses"),
    ),
    Mutant(
        "CPO's contrast on means over tokens",
        "losses/reference_free.py",
        "self.beta * (policy.chosen - policy.rejected)",
        "self.beta * (policy.chosen / policy.chosen_length - policy.rejected / policy.rejected_length)",
        tests_of("cpo", "test_reference_free_losses"),
    ),
    Mutant(
        "likelihood term per reply where per token was asked for",
        "losses/sft_term.py",
        'return -policy.chosen / policy.chosen_length if per == "token" else -policy.chosen',
        "return -policy.chosen",
        tests_of("dpo_sft", "test_reference_free_losses"),
    ),
    Mutant(
        "likelihood of the chosen reply pushed down",
        "losses/sft_term.py",
        "loss + self.coefficient * nll",
        "loss - self.coefficient * nll",
        tests_of("dpo_sft", "test_reference_free_losses"),
    ),
)
