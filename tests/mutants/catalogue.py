"""All mutants, from the ground floor up."""

from tests.mutants import (
    data,
    decoding,
    figures,
    head,
    kernels,
    losses,
    methods,
    models,
    on_policy,
    packing,
    pairwise,
    rollout,
    worlds,
)
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *kernels.MUTANTS,
    *head.MUTANTS,
    *losses.MUTANTS,
    *pairwise.MUTANTS,
    *data.MUTANTS,
    *models.MUTANTS,
    *packing.MUTANTS,
    *decoding.MUTANTS,
    *worlds.MUTANTS,
    *rollout.MUTANTS,
    *methods.MUTANTS,
    *on_policy.MUTANTS,
    *figures.MUTANTS,
)
