"""The exact world: small enough that the optimum is known, so that methods are scored and not only watched.

`ExactWorld` has the numbers, `TabularPolicy` and `population_optimum` need no network, `ExactSource`, `ExactReward`
and `build_tokenizer` let real methods train real networks in it.
"""

from alignlab.worlds.exact.network import every_response, response_logprobs
from alignlab.worlds.exact.population import TabularPolicy, population_optimum
from alignlab.worlds.exact.rewards import Automaton, Bandit, RandomTable, TokenCounts
from alignlab.worlds.exact.source import ExactSource
from alignlab.worlds.exact.text import ExactReward, Script, build_tokenizer
from alignlab.worlds.exact.world import ExactWorld, PopulationPairs

__all__ = [
    "Automaton",
    "Bandit",
    "ExactReward",
    "ExactSource",
    "ExactWorld",
    "PopulationPairs",
    "RandomTable",
    "Script",
    "TabularPolicy",
    "TokenCounts",
    "build_tokenizer",
    "every_response",
    "population_optimum",
    "response_logprobs",
]
