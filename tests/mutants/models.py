"""Bugs around networks: positions, masks, modes, adapters, references, scores, values."""

from tests.mutants.mutant import Mutant

POLICY = ("models/test_policy.py",)
ADAPTERS = ("models/test_adapters.py",)
REWARD = ("models/test_reward_model.py",)
FROM_REWARD = ("models/test_reward_model.py::test_a_critic_from_a_frozen_reward_model_trains_weights_of_its_own",)
CRITIC = ("models/test_reward_model.py::test_a_critic_from_a_policy_is_a_copy_that_starts_at_zero", *REWARD)
BIASED = ("models/test_policy.py::test_a_heads_bias_counts_in_log_probs_in_parts_and_in_greedy_choice",)
TIED = ("models/test_embeddings.py",)
IN_CHUNKS = ("methods/test_loss_in_chunks.py",)
REFERENCES = (
    "models/test_adapters.py::test_references_are_the_start_in_eval_mode_whatever_the_policy_does",
    "models/test_adapters.py::test_the_networks_own_dropout_is_off_in_both_references",
    *ADAPTERS,
)

MUTANTS = (
    Mutant(
        "positions count left padding",
        "models/backbone.py",
        "return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)",
        "return torch.ones_like(attention_mask).long().cumsum(-1) - 1",
        POLICY,
    ),
    Mutant(
        "attention to padding",
        "models/backbone.py",
        "return body(input_ids=input_ids, attention_mask=attention_mask.long(), use_cache",
        "return body(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache",
        POLICY,
    ),
    Mutant(
        "evaluation leaves dropout on",
        "models/backbone.py",
        "    module.eval()\n    try:",
        "    try:",
        (*REFERENCES, "evaluate/test_evaluate_policy.py"),
    ),
    Mutant(
        "evaluation leaves the network in eval mode for the rest of training",
        "models/backbone.py",
        "part.training = mode",
        "part.training = False",
        ("evaluate/test_evaluate_policy.py", "rollout/test_generate.py"),
    ),
    Mutant(
        "temperature forgotten in the training forward",
        "models/policy.py",
        "temperature=temperature, entropy=entropy, **settings)",
        "entropy=entropy, **settings)",
        POLICY,
    ),
    Mutant(
        "temperature forgotten in the loss inside the head",
        "models/policy.py",
        "            loss=loss_of,\n            temperature=temperature,\n",
        "            loss=loss_of,\n",
        IN_CHUNKS,
    ),
    Mutant(
        "bias of the output head forgotten in the loss inside the head",
        "models/policy.py",
        "**head._asdict(),",
        "**{**head._asdict(), 'bias': None},",
        BIASED,
    ),
    Mutant(
        "bias of the output head forgotten in the training forward",
        "models/policy.py",
        "entropy=entropy, **settings)",
        "entropy=entropy, **{**settings, 'bias': None})",
        BIASED,
    ),
    Mutant(
        "bias of the output head forgotten in the most likely token",
        "models/policy.py",
        "linear_argmax(hidden, **settings)",
        "linear_argmax(hidden, **{**settings, 'bias': None})",
        BIASED,
    ),
    Mutant(
        "values of the shared trunk put back in another order",
        "models/policy.py",
        "return scatter(self.value_head(hidden), mask)",
        "return scatter(self.value_head(hidden.flip(0)), mask)",
        (*POLICY, "methods/test_ppo.py"),
    ),
    Mutant(
        "adapter not off in the reference",
        "models/reference.py",
        "with evaluating(self._policy.model), self._policy.adapter_off():",
        "with evaluating(self._policy.model):",
        REFERENCES,
    ),
    Mutant(
        "dropout on in the reference by adapter-off",
        "models/reference.py",
        "with evaluating(self._policy.model), self._policy.adapter_off():",
        "with self._policy.adapter_off():",
        REFERENCES,
    ),
    Mutant(
        "dropout on in the frozen copy",
        "models/reference.py",
        "return super().train(False)",
        "return super().train(mode)",
        REFERENCES,
    ),
    Mutant(
        "the reference is the policy itself, not a copy",
        "models/reference.py",
        "copy.deepcopy(policy.model), tokenizer",
        "policy.model, tokenizer",
        REFERENCES,
    ),
    Mutant(
        "temperature forgotten in the reference",
        "models/reference.py",
        "return self.policy(sequences, temperature=temperature).logprobs",
        "return self.policy(sequences).logprobs",
        ("methods/test_held_out_figures.py", "methods/test_online_dpo.py"),
    ),
    Mutant(
        "adapter still off after the reference was asked",
        "models/adapter_state.py",
        "layer._disable_adapters, layer._active_adapter = disabled, active",
        "layer._active_adapter = active",
        REFERENCES,
    ),
    Mutant(
        "adapter of the SFT run dropped instead of merged",
        "models/assembly.py",
        "seed=seed).merge_and_unload()",
        "seed=seed).unload()",
        ("models/test_adapters.py::test_a_new_adapter_on_an_adapted_model_starts_from_the_adapted_one", *ADAPTERS),
    ),
    Mutant(
        "biases trained beside the adapter: the network with the adapter off moves",
        "models/adapter_state.py",
        'parameter.requires_grad_(f".{TRAINED}." in name',
        'parameter.requires_grad_(name.endswith(".bias") or f".{TRAINED}." in name',
        ADAPTERS,
    ),
    Mutant(
        "dropout set to 0 whatever is asked for",
        "models/loading.py",
        "setattr(config, name, float(dropout))",
        "setattr(config, name, 0.0)",
        ("models/test_source.py",),
    ),
    Mutant(
        "score read in the last column, padding or not",
        "models/reward_model.py",
        "return (columns * sequences.attention_mask).argmax(-1)",
        "return columns[-1].expand(len(sequences.attention_mask))",
        REWARD,
    ),
    Mutant(
        "score read one token before the end",
        "models/reward_model.py",
        "return (columns * sequences.attention_mask).argmax(-1)",
        "return (columns * sequences.attention_mask).argmax(-1) - 1",
        REWARD,
    ),
    Mutant(
        "reward scale: mean taken off without its gain",
        "models/reward_model.py",
        "self.bias.fill_(-scores.double().mean().item() / std)",
        "self.bias.fill_(-scores.double().mean().item())",
        REWARD,
    ),
    Mutant(
        "reward scale forgotten when a reward model is loaded",
        "models/reward_model.py",
        'reward_model.gain.fill_(notes.pop("gain"))',
        'notes.pop("gain")',
        (*REWARD, "rollout/test_rewards.py"),
    ),
    Mutant(
        "values one step late: of the state after the token, not before it",
        "models/critic.py",
        "mask = shift_labels(sequences.labels) != IGNORE",
        "mask = sequences.labels != IGNORE",
        REWARD,
    ),
    Mutant(
        "critic shares its weights with the policy",
        "models/critic.py",
        "return copy.deepcopy(body, frozen)",
        "return body",
        CRITIC,
    ),
    Mutant(
        "critic's adapter shares its weights with the policy's",
        "models/critic.py",
        "for p in body.parameters() if not p.requires_grad}",
        "for p in body.parameters()}",
        CRITIC,
    ),
    Mutant(
        "critic copies the frozen weights under its adapter",
        "models/critic.py",
        "if not p.requires_grad} if share_frozen else {}",
        "if not p.requires_grad} if False else {}",
        CRITIC,
    ),
    Mutant(
        "critic trains the very weights of the reward model it starts from",
        "models/critic.py",
        "share_frozen=reward_model.has_adapter",
        "share_frozen=True",
        FROM_REWARD,
    ),
    Mutant(
        "critic that starts from a frozen reward model stays frozen",
        "models/critic.py",
        "body.requires_grad_(True)",
        "body.requires_grad_(False)",
        FROM_REWARD,
    ),
    Mutant(
        "value head that does not start at zero",
        "models/heads.py",
        "nn.init.zeros_(self.linear.weight)",
        "nn.init.normal_(self.linear.weight)",
        REWARD,
    ),
    Mutant(
        "a tied embedding learns from the head alone",
        "models/embeddings.py",
        "return of_weight.index_add_(0, tokens, sums), None, None",
        "return of_weight, None, None",
        TIED,
    ),
    Mutant(
        "a padding token learns from its lookups",
        "models/embeddings.py",
        "        sums[tokens == ctx.padding] = 0\n",
        "",
        TIED,
    ),
)
