"""Bugs between rows and batches: end tokens, truncation, masks, padding, pairs, epochs, splits."""

from tests.mutants.mutant import Mutant

TOKENIZE = ("data/test_tokenize.py",)
MODULE = ("data/test_module.py",)
SOFT = ("data/test_soft_labels.py",)
UNPAIRED = ("data/test_unpaired.py",)
TOKENS = ("data/test_batch_tokens.py",)
IN_CHUNKS = ("methods/test_loss_in_chunks.py",)

MUTANTS = (
    # -- from texts to ids -------------------------------------------------------------------------------------------
    Mutant(
        "no end token after a reply: the model never learns to stop",
        "data/tokenize.py",
        "ids = start + reply + ([end] if end is not None else [])",
        "ids = start + reply",
        TOKENIZE,
    ),
    Mutant(
        "two end tokens where the text spells one",
        "data/tokenize.py",
        "return response[: -len(text)], stop",
        "return response, stop",
        TOKENIZE,
    ),
    Mutant(
        "a reply cut at max_length gets an end token all the same",
        "data/tokenize.py",
        "return Encoded(ids[:limit], len(start)",
        "return Encoded(ids[: limit - 1] + ids[-1:], len(start)",
        TOKENIZE,
    ),
    Mutant(
        "long prompts lose their end instead of their beginning",
        "data/tokenize.py",
        "return head + (ids[-keep:] if keep else [])",
        "return head + ids[len(head) : len(head) + keep]",
        TOKENIZE,
    ),
    Mutant(
        "first token of the reply masked as if it were prompt",
        "data/tokenize.py",
        "return Encoded(ids[:limit], len(start), len(ids) > limit",
        "return Encoded(ids[:limit], len(start) + 1, len(ids) > limit",
        TOKENIZE,
    ),
    Mutant(
        "prompt tokenised apart from the reply even where a token would straddle the boundary",
        "data/tokenize.py",
        "is_split = joint[: len(prompt)] != prompt",
        "is_split = True",
        TOKENIZE,
    ),
    Mutant(
        "no BOS before plain text",
        "data/tokenize.py",
        "ids = [*self._lead, *ids]",
        "ids = [*ids]",
        TOKENIZE,
    ),
    # -- from ids to tensors -----------------------------------------------------------------------------------------
    Mutant(
        "end token masked out of the labels",
        "data/collate.py",
        "labels[b, prompt_length : len(ids)] = ids[prompt_length:]",
        "labels[b, prompt_length : len(ids) - 1] = ids[prompt_length:-1]",
        MODULE,
    ),
    Mutant(
        "prompt tokens trained on",
        "data/collate.py",
        "labels[b, prompt_length : len(ids)] = ids[prompt_length:]",
        "labels[b, : len(ids)] = ids",
        (*MODULE, *UNPAIRED),
    ),
    Mutant(
        "padding scored",
        "data/collate.py",
        "labels = np.full((len(rows), width), IGNORE, dtype=np.int64)",
        "labels = np.full((len(rows), width), pad_id, dtype=np.int64)",
        MODULE,
    ),
    Mutant(
        "attention mask from the pad id, which is the end token's too",
        "data/collate.py",
        "mask[b, : len(ids)] = True",
        "mask[b, : len(ids)] = ids != pad_id",
        MODULE,
    ),
    Mutant(
        "prompts to generate from padded on the right",
        "data/collate.py",
        "        input_ids[b, width - len(row) :] = row\n        mask[b, width - len(row) :] = True",
        "        input_ids[b, : len(row)] = row\n        mask[b, : len(row)] = True",
        MODULE,
    ),
    Mutant(
        "chosen and rejected replies interleaved where halves are expected",
        "data/collate.py",
        "[table.row(i) for table in rows.tables for i in own]",
        "[table.row(i) for i in own for table in rows.tables]",
        MODULE,
    ),
    Mutant(
        "rejected replies in the chosen half",
        "data/collate.py",
        "[table.row(i) for table in rows.tables for i in own]",
        "[table.row(i) for table in reversed(rows.tables) for i in own]",
        MODULE,
    ),
    Mutant(
        "soft labels and weights lost on the way to the batch",
        "data/collate.py",
        "return PreferenceBatch(sequences, _numbers(own), **labels)",
        "return PreferenceBatch(sequences, _numbers(own))",
        SOFT,
    ),
    Mutant(
        "KTO's mismatched reply is the prompt's own",
        "data/collate.py",
        "np.roll(index, -(1 + kept.index(min(kept))))",
        "np.roll(index, -kept.index(min(kept)))",
        UNPAIRED,
    ),
    Mutant(
        "KTO's mismatched replies taken within each process's share",
        "data/collate.py",
        "others = mismatched(rows.groups, index)",
        "others = mismatched(rows.groups, index[share])",
        UNPAIRED,
    ),
    Mutant(
        "micro-batches pair chosen replies with the wrong rejected ones",
        "batches.py",
        "torch.cat([index, index + len(self.rows)])",
        "torch.cat([index, index + len(index)])",
        (*SOFT, "methods/test_methods.py::test_one_batch_of_eight_equals_eight_of_one"),
    ),
    Mutant(
        "weights of pairs lost in micro-batches",
        "batches.py",
        "weight = None if self.weight is None else self.weight[index]",
        "weight = None",
        SOFT,
    ),
    Mutant(
        "every part of a batch gets the reference sums of the first pairs",
        "batches.py",
        "self.ref_logprobs[rows]",
        "self.ref_logprobs[: len(rows)]",
        IN_CHUNKS,
    ),
    Mutant(
        "pairs counted where their weights should be summed",
        "batches.py",
        "return self.weight.double().sum()",
        "return torch.tensor(float(len(self.rows)), dtype=torch.float64)",
        ("methods/test_soft_labels.py",),
    ),
    Mutant(
        "rejected replies called desirable",
        "rows.py",
        "UnpairedRow(row.prompt, row.rejected, row.preference == 0)",
        "UnpairedRow(row.prompt, row.rejected, row.preference == 1)",
        UNPAIRED,
    ),
    Mutant(
        "SFT imitates the chosen reply although its soft label is below a half",
        "rows.py",
        "row.chosen if row.preference >= 0.5 else row.rejected",
        "row.chosen",
        SOFT,
    ),
    # -- epochs and splits -------------------------------------------------------------------------------------------
    Mutant(
        "the same order of rows in every epoch",
        "data/loader.py",
        "np.random.default_rng([seed, epoch])",
        "np.random.default_rng([seed])",
        MODULE,
    ),
    Mutant(
        "last, smaller batch of an epoch dropped",
        "data/loader.py",
        "divmod(step, -(-num_rows // batch_size))",
        "divmod(step, num_rows // batch_size)",
        MODULE,
    ),
    Mutant(
        "last row of an epoch lost where batches are by tokens",
        "data/loader.py",
        "return [*bounds, len(ends)]",
        "return [*bounds, len(ends) - 1]",
        TOKENS,
    ),
    Mutant(
        "batches by tokens without a row where rows are long",
        "data/loader.py",
        "min(max(wanted, bounds[-1] + 1), most)",
        "min(wanted, most)",
        TOKENS,
    ),
    Mutant(
        "pairs counted by their chosen reply alone in batches by tokens",
        "data/encoded.py",
        "for table in self.tables]).sum(0)",
        "for table in self.tables[:1]]).sum(0)",
        TOKENS,
    ),
    Mutant(
        "processes train on the same rows",
        "data/module.py",
        "return slice(self._rank, None, self._world_size)",
        "return slice(0, None, self._world_size)",
        MODULE,
    ),
    Mutant(
        "held-out rows stay in the training set",
        "data/splits.py",
        'self._encoded["train"] = self._encoded["train"].take(kept)',
        "pass",
        MODULE,
    ),
    Mutant(
        "one prompt's rows on both sides of the split",
        "data/encoded.py",
        "is_held = np.isin(groups, unique[:num_held])",
        "is_held = np.arange(len(groups)) < num_held",
        MODULE,
    ),
    Mutant(
        "identity of the data without its token ids: stale caches are taken for fresh ones",
        "data/encoded.py",
        "for array in (table.starts, table.prompt_lengths, table.ids):",
        "for array in (table.starts, table.prompt_lengths):",
        MODULE,
    ),
)
