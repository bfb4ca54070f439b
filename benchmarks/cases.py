"""What is compared: each case is one way to train (or to sample), how ours is told to do it, and which peer does it.

The bars are this project's own targets over TRL in float32 on a CPU, for S, M and Q: how many times faster, and what
share of the peer's memory growth. They are compared with what was measured, and change nothing.
"""

from dataclasses import dataclass, field

from benchmarks.workloads import Network, Workload, load_pairs, network_folder

Bars = dict[str, float]  # workload -> times faster


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    title: str
    networks: tuple[Network, ...]  # that must lie on disk
    overrides: tuple[str, ...] = ()  # of our config, beside those that all cases share
    sides: tuple[str, ...] = ("chosen", "rejected")  # replies whose tokens count, where data is offline
    peer: str | None = None  # module of benchmarks.peers, and the case it is asked for
    peer_case: str = ""
    has_compact: bool = False  # whether TRL's LM head can skip prompts and padding here
    is_sampled: bool = False  # tokens are drawn, so both systems see other ones
    floor: str | None = None  # which minimum of work it has (benchmarks.floors)
    note: str = ""
    speed: Bars = field(default_factory=dict)
    compact_speed: Bars = field(default_factory=dict)
    growth: float | None = None
    compact_growth: float | None = None

    def prepare(self, of: Workload) -> None:
        """Write the files that are missing; in a process of its own, so that no measured one pays for it."""
        load_pairs(of, 1)
        for network in self.networks:
            network_folder(of, network)


def _bars(s: float, m: float, q: float) -> Bars:
    return {"S": s, "M": m, "Q": q}


_CACHED = "method.reference=cached"
_PPO = ("method=ppo", "method/reward=model", "method.kl.coefficient=0.05")

CASES = {
    case.name: case
    for case in (
        Case(
            "sft",
            "SFT",
            ("policy",),
            ("method=sft",),
            sides=("chosen",),
            peer="trl_offline",
            peer_case="sft",
            has_compact=True,
            floor="sft",
            speed=_bars(2.2, 2.0, 3.8),
            compact_speed=_bars(1.4, 1.2, 1.7),
            growth=0.6,
            compact_growth=0.8,
        ),
        Case(
            "reward",
            "reward model",
            ("classifier",),
            ("method=reward",),
            peer="trl_offline",
            peer_case="reward",
            floor="reward",
            speed=_bars(1.7, 1.8, 1.7),
            growth=0.65,
        ),
        Case(
            "dpo",
            "DPO, reference cached",
            ("policy",),
            ("method=dpo", _CACHED),
            peer="trl_offline",
            peer_case="dpo_cached",
            has_compact=True,
            floor="dpo",
            note="both cache",
            speed=_bars(3.3, 2.3, 4.5),
            compact_speed=_bars(1.8, 1.7, 1.5),
            growth=0.5,
            compact_growth=0.7,
        ),
        Case(
            "dpo_live",
            "DPO, reference at each step",
            ("policy",),
            ("method=dpo", "method.reference=copy"),
            peer="trl_offline",
            peer_case="dpo",
            floor="dpo",
            note="both run a copy of the starting model",
            speed=_bars(2.8, 2.2, 3.8),
            growth=0.5,
        ),
        Case(
            "dpo_lora",
            "DPO with LoRA",
            ("policy",),
            ("method=dpo", _CACHED, "adapter=lora"),
            peer="trl_offline",
            peer_case="dpo_lora",
            floor="dpo_lora",
            note="ours caches the reference; TRL as by default (adapter off, at each step)",
            speed=_bars(3.5, 3.0, 8.0),
            growth=0.45,
        ),
        Case(
            "ppo",
            "PPO, critic of its own",
            ("talker", "value", "reward"),
            (*_PPO, "method.critic=separate"),
            peer="trl_ppo",
            peer_case="ppo",
            is_sampled=True,
            note="the same work",
            speed=_bars(1.7, 1.15, 1.8),
            growth=0.8,
        ),
        Case(
            "ppo_shared",
            "PPO, value head on the policy",
            ("talker", "value", "reward"),
            (*_PPO, "method.critic=shared"),
            peer="trl_ppo",
            peer_case="ppo",
            is_sampled=True,
            note="another algorithm than the peer's, which has no such critic",
            speed=_bars(2.4, 1.6, 2.5),
        ),
        Case(
            "ppo_lora",
            "PPO with LoRA, critic on the same frozen weights",
            ("talker", "value", "reward"),
            (*_PPO, "method.critic=separate", "adapter=lora"),
            peer="trl_ppo",
            peer_case="ppo",
            is_sampled=True,
            note="another algorithm: adapters, where the peer trains all weights and holds four models",
        ),
        Case(
            "rollout",
            "rollouts alone",
            ("talker", "reward"),
            _PPO,
            peer="hf_generate",
            peer_case="rollout",
            is_sampled=True,
            note="over transformers' generate with its scores; tokens are those produced",
            speed=_bars(2.4, 1.3, 1.9),
            growth=0.1,
        ),
        Case("rloo", "RLOO", ("talker", "reward"), ("method=rloo", "method/reward=model"), is_sampled=True),
    )
}
DEFAULT = [name for name, case in CASES.items() if case.peer]
"""The cases of the table; RLOO is there for the growth with the number of replies."""
