"""All mutants, from the ground floor up."""

from tests.mutants import data, figures, kernels, losses, methods, models, on_policy, pairwise, rollout, worlds
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *kernels.MUTANTS,
    *losses.MUTANTS,
    *pairwise.MUTANTS,
    *data.MUTANTS,
    *models.MUTANTS,
    *worlds.MUTANTS,
    *rollout.MUTANTS,
    *methods.MUTANTS,
    *on_policy.MUTANTS,
    *figures.MUTANTS,
)
