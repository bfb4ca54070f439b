"""Bugs in reading a token at a time: the cache, positions, rotations, windows, padding, groups of heads."""

from tests.mutants.mutant import Mutant

DECODING = "models/test_decoding.py"
STATES = (f"{DECODING}::test_states_equal_a_plain_forward_of_each_row_alone", DECODING)
CACHE = (f"{DECODING}::test_rows_of_a_cache_are_moved_up_by_hand", DECODING)
VISIBLE = (f"{DECODING}::test_visibility_of_a_padded_prompt_by_hand", DECODING)
HALF = (f"{DECODING}::test_a_half_precision_head_is_applied_in_float32_piece_by_piece", DECODING)

MUTANTS = (
    Mutant(
        "positions stand still while a reply is written",
        "models/decoding/direct.py",
        "self.positions = self.positions + 1",
        "self.positions = self.positions",
        STATES,
    ),
    Mutant(
        "positions stand still while a reply is written (any network)",
        "models/decoding/general.py",
        "self.positions = self.positions[:, -1:] + 1",
        "self.positions = self.positions[:, -1:]",
        STATES,
    ),
    Mutant(
        "left padding attended to in generation",
        "models/decoding/direct.py",
        "attn_mask=bias",
        "attn_mask=None",
        STATES,
    ),
    Mutant(
        "left padding attended to in generation (any network)",
        "models/decoding/general.py",
        "self.attention[:, : self.width] = prompt_mask",
        "self.attention[:, : self.width] = 1",
        STATES,
    ),
    Mutant(
        "padding of the prompt visible inside the prompt",
        "models/decoding/cache.py",
        "square.tril() & prompt_mask[:, None, :]",
        "square.tril() & torch.ones_like(prompt_mask)[:, None, :]",
        VISIBLE,
    ),
    Mutant(
        "tokens of the prompt see those after them",
        "models/decoding/cache.py",
        "square.tril() & prompt_mask[:, None, :]",
        "square & prompt_mask[:, None, :]",
        VISIBLE,
    ),
    Mutant(
        "padding columns of the cache hold what the memory held",
        "models/decoding/cache.py",
        "part[layer][:, :, : self.prompt_width] = 0.0",
        'part[layer][:, :, : self.prompt_width] = float("nan")',
        CACHE,
    ),
    Mutant(
        "keys and values of the rows that go on left where they were",
        "models/decoding/cache.py",
        "                if len(moved):\n",
        "                if not len(rows):\n",
        CACHE,
    ),
    Mutant(
        "last column of the cache not moved with its row",
        "models/decoding/cache.py",
        "tensor[moved, :, :width] = tensor[source, :, :width]",
        "tensor[moved, :, : width - 1] = tensor[source, :, : width - 1]",
        STATES,
    ),
    Mutant(
        "positions of the rows that have ended given to those that go on",
        "models/decoding/direct.py",
        "self.positions = self.positions[rows]",
        "self.positions = self.positions[: len(rows)]",
        STATES,
    ),
    Mutant(
        "padding of the rows that have ended hidden from those that go on",
        "models/decoding/direct.py",
        "else self.bias[rows]",
        "else self.bias[: len(rows)]",
        STATES,
    ),
    Mutant(
        "rows that go on in another order keep their old mask (any network)",
        "models/decoding/general.py",
        "self.attention[rows], self.positions[rows]",
        "self.attention[: len(rows)], self.positions[rows]",
        STATES,
    ),
    Mutant(
        "a token does not see itself in its step",
        "models/decoding/direct.py",
        "seen = slice(first, self.width)",
        "seen = slice(first, self.width - 1)",
        STATES,
    ),
    Mutant(
        "angles of a reply's tokens one position behind the prompt's",
        "models/decoding/direct.py",
        "rotation = self._rotation_at(self.positions)",
        "rotation = self._rotation_at(self.positions - 1)",
        STATES,
    ),
    Mutant(
        "angles by column, padding or not",
        "models/decoding/direct.py",
        "rotation = self._rotation_at(positions)",
        "rotation = self._rotation_at(columns)",
        STATES,
    ),
    Mutant(
        "queries and keys rotated the other way",
        "models/decoding/layers.py",
        "torch.cat([-low, high], dim=-1)",
        "torch.cat([low, -high], dim=-1)",
        STATES,
    ),
    Mutant(
        "query heads dealt out to the wrong key heads",
        "models/decoding/direct.py",
        "query.to(values.dtype).view(num_rows, num_groups, num_heads // num_groups, size)",
        "query.to(values.dtype).view(num_rows, num_heads // num_groups, num_groups, size).transpose(1, 2)",
        STATES,
    ),
    Mutant(
        "a window one column too wide in a reply",
        "models/decoding/direct.py",
        "max(0, self.width - layer.window)",
        "max(0, self.width - layer.window - 1)",
        STATES,
    ),
    Mutant(
        "a window one column too wide in the prompt",
        "models/decoding/direct.py",
        ".triu(1 - layer.window)",
        ".triu(-layer.window)",
        STATES,
    ),
    Mutant(
        "a network decoded by our loop although something hooks into it",
        "models/decoding/families.py",
        "        and not (module._forward_hooks or module._forward_pre_hooks)\n",
        "",
        (f"{DECODING}::test_networks_with_something_of_their_own_in_a_block_are_run_through_it", DECODING),
    ),
    Mutant(
        "logits of a rollout in half precision",
        "models/decoding/logits.py",
        "if upcast(head.weight) is head.weight:",
        "if head.weight is not None:",
        HALF,
    ),
)
