"""Where a run's network comes from: `conf/model/*.yaml` constructs a `ModelSource`, methods ask it for theirs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.errors import ConfigError, ModelError
from alignlab.models.adapters import NoAdapter
from alignlab.models.assembly import Adapter, Network, from_architecture, from_located
from alignlab.models.backbone import check_plain_head, unwrapped
from alignlab.models.loading import Kind, make_config
from alignlab.models.origins import REWARD_FILE, Located, Origin, locate
from alignlab.models.policy import Policy
from alignlab.models.quiet import quiet
from alignlab.models.reward_model import RewardModel, TextFormat, read_notes
from alignlab.models.tokenizers import check_vocabulary, load_tokenizer, own_tokenizer, stop_tokens, with_padding


class ModelSource:
    """One network to start from: a run folder, a Hugging Face folder, a hub id, or random weights.

    The same settings and seed give the same weights, heads and adapters included; the global RNG is left alone.
    """

    def __init__(
        self,
        *,
        init_from: str | None = None,
        revision: str | None = None,
        architecture: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
        stop_token_ids: Sequence[int] | None = None,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        """With `init_from`, weights and tokenizer come from there, and `architecture` and `tokenizer`, if given all the
        same, must agree with what is found. Without, `architecture` (a transformers `model_type` and its settings)
        makes random weights for `tokenizer` (an object, a folder or a hub id). ConfigError if either is then missing.
        """
        if init_from is None and architecture is None:
            raise ConfigError("model: needs init_from (weights to start from) or architecture (random weights)")
        if init_from is None and tokenizer is None:
            raise ConfigError("model.tokenizer: random weights need a tokenizer: a folder or a hub id")
        if not 0 <= dropout < 1:
            raise ConfigError(f"model.dropout={dropout} must be in [0, 1)")
        self.init_from, self.revision = init_from, revision
        self.architecture = None if architecture is None else plain(architecture)
        self.tokenizer, self.stop_token_ids = tokenizer, stop_token_ids
        self.dropout, self.gradient_checkpointing, self.seed = dropout, gradient_checkpointing, seed
        self._tokenizer: Any = None

    def load_tokenizer(self) -> Any:
        """The tokenizer, always with a pad token; loaded once."""
        if self._tokenizer is None:
            given = self.tokenizer
            with quiet():
                if isinstance(given, str):
                    given = load_tokenizer(locate_tokenizer(given))
                if self.init_from is not None:
                    given = own_tokenizer(self._located().files, given)
            self._tokenizer = with_padding(given)
        return self._tokenizer

    def stop_tokens(self) -> tuple[int, ...]:
        """Ids that end a reply: `stop_token_ids`, else generation_config's, else the tokenizer's end token."""
        files = self._located().files if self.init_from is not None else None
        return stop_tokens(self.stop_token_ids, files, self.load_tokenizer())

    def load_policy(self, adapter: Adapter | None = None) -> Policy:
        """The policy to train, with `adapter` on it; what it computes now is what `adapter_off()` will always give."""
        adapter = adapter or NoAdapter()
        with quiet():
            network = self._network("causal", adapter)
            check_plain_head(network.model)
            model = self._finish(network, "causal", adapter)
        policy = Policy(
            model,
            tokenizer=self.load_tokenizer(),
            stop_token_ids=self.stop_tokens(),
            origin=network.origin,
            quantization=adapter.quantization(),
        )
        set_generation(policy)
        return policy

    def load_reward_model(self, adapter: Adapter | None = None) -> RewardModel:
        """The reward model to train: a trained one with its scale, or this network's body with a fresh head."""
        adapter = adapter or NoAdapter()
        with quiet():
            network = self._network("classifier", adapter)
            model = self._finish(network, "classifier", adapter)
        reward_model = RewardModel(
            model,
            tokenizer=self.load_tokenizer(),
            origin=network.origin,
            quantization=adapter.quantization(),
            text_format=TextFormat(stop_token_ids=self.stop_tokens()),
        )
        if self.init_from is not None:
            read_notes(reward_model, self._located().files)
        return reward_model

    def _network(self, kind: Kind, adapter: Adapter) -> Network:
        """Weights without the new adapter."""
        if self.init_from is None:
            return from_architecture(self._random_config(kind), kind, adapter, seed=self.seed)
        located = self._located()
        if kind == "causal" and located.files.is_folder and (located.files.folder() / REWARD_FILE).exists():
            raise ModelError(f"model.init_from={self.init_from}: a reward model; a policy cannot start from it")
        network = from_located(located, kind, adapter, dropout=self.dropout, seed=self.seed)
        self._check_architecture(unwrapped(network.model).config)
        return network

    def _finish(self, network: Network, kind: Kind, adapter: Adapter) -> Any:
        """Checks the vocabulary, sets what the libraries read from the config, and puts the adapter on."""
        inner, tokenizer = unwrapped(network.model), self.load_tokenizer()
        check_vocabulary(tokenizer, inner.get_input_embeddings().weight.shape[0])
        inner.config.pad_token_id = tokenizer.pad_token_id
        if self.gradient_checkpointing:
            inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return adapter.attach(network.model, kind, seed=self.seed)

    def _random_config(self, kind: Kind) -> Any:
        """The config of random weights, sized for the tokenizer."""
        assert self.architecture is not None
        tokenizer = self.load_tokenizer()
        special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        size = max(tokenizer.get_vocab().values()) + 1
        settings = {"vocab_size": size, "pad_token_id": tokenizer.pad_token_id, **special, **self.architecture}
        return make_config(settings, kind, dropout=self.dropout)

    def _check_architecture(self, config: Any) -> None:
        """ConfigError if the loaded network is not what `architecture` describes (a group's default, most likely)."""
        for name, value in (self.architecture or {}).items():
            if plain(found := getattr(config, name, None)) != value:
                raise ConfigError(
                    f"model.architecture.{name}={value}, but {self.init_from} has {found}; to start from weights of "
                    "another shape choose model=pretrained"
                )

    def _located(self) -> Located:
        """What `init_from` names."""
        assert self.init_from is not None
        return locate(self.init_from, self.revision)


def plain(value: Any) -> Any:
    """Mappings and sequences of any kind as dicts and lists, which is what transformers configs can keep."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def locate_tokenizer(name: str) -> Origin:
    """The folder or hub id of a tokenizer; a run folder's own counts too."""
    if Path(name).is_dir() and not (Path(name) / "run.json").exists():
        return Origin(name)
    return locate(name).files


def set_generation(policy: Policy) -> None:
    """Writes stop and pad tokens where transformers' own `generate` reads them, so that it ends replies as we do."""
    generation = unwrapped(policy.model).generation_config
    generation.eos_token_id = list(policy.stop_token_ids)
    generation.pad_token_id = policy.tokenizer.pad_token_id
