"""Bugs in batches without padding: packed rows, prompts that several rows share, what attends to what."""

from tests.mutants.mutant import Mutant

PACKING = "models/test_packing.py"
BY_HAND = (f"{PACKING}::test_a_packed_row_by_hand", PACKING)
ALONE = (f"{PACKING}::test_values_and_gradients_are_those_of_every_row_alone", PACKING)
APART = (f"{PACKING}::test_no_row_sees_another", PACKING)
BY_DEFINITION = (f"{PACKING}::test_attend_is_dense_attention_under_the_mask_of_the_definition", PACKING)
WINDOW = (f"{PACKING}::test_a_sliding_window_is_packed_up_to_its_length", PACKING)
FLEX = (f"{PACKING}::test_the_rule_for_flex_attention_is_the_definition", PACKING)

MUTANTS = (
    Mutant(
        "positions run on from one packed sequence to the next",
        "models/packing/packed.py",
        "positions[index[mask]] = rank[mask]",
        "positions[:] = np.arange(len(positions))",
        BY_HAND,
    ),
    Mutant(
        "a packed sequence attends to its neighbour",
        "models/packing/packed.py",
        "if prefixes[row] else Piece(own))",
        "if prefixes[row] else Piece(own, len(pieces) - 1, pieces[-1].length if pieces else 0))",
        APART,
    ),
    Mutant(
        "a reply that shares its prompt attends to the other reply",
        "models/packing/packed.py",
        "int(prefixes[row])) if prefixes[row]",
        "pieces[place[sources[row]]].length) if prefixes[row]",
        APART,
    ),
    Mutant(
        "prompts of one length taken for the same",
        "models/packing/packed.py",
        "first_with.setdefault(prompt.tobytes(), row)",
        "first_with.setdefault(bytes(len(prompt)), row)",
        ALONE,
    ),
    Mutant(
        "padding run in the packed row",
        "models/packing/packed.py",
        "(part.numpy(force=True) for part in sequences)",
        "(part.numpy(force=True) for part in sequences._replace(attention_mask=sequences.attention_mask | True))",
        (f"{PACKING}::test_padding_never_reaches_the_network", PACKING),
    ),
    Mutant(
        "last token of a shared prompt looked for before the reply",
        "models/packing/packed.py",
        "np.where(rank < prefix, start",
        "np.where(rank < prefix - 1, start",
        BY_HAND,
    ),
    Mutant(
        "prompts counted one token too long: replies that begin differently share nothing",
        "models/packing/packed.py",
        "return np.take_along_axis(rank, first, axis=1)[:, 0]",
        "return np.take_along_axis(rank, first, axis=1)[:, 0] + 1",
        BY_HAND,
    ),
    Mutant(
        "a network that packing changes is packed all the same",
        "models/packing/packed.py",
        "< _tolerance(body, expected) for",
        "is not None for",
        (f"{PACKING}::test_a_network_that_mixes_rows_is_found_out_and_left_as_it_was", PACKING),
    ),
    Mutant(
        "sequences longer than the attention window packed all the same",
        "models/packing/__init__.py",
        "if packed is None or packed.segments.longest > longest or",
        "if packed is None or",
        WINDOW,
    ),
    Mutant(
        "length of a sequence without the prompt it shares",
        "models/packing/attention.py",
        "max(piece.prefix + piece.length for",
        "max(piece.length for",
        BY_HAND,
    ),
    Mutant(
        "a reply after a shared prompt sees the next token",
        "models/packing/attention.py",
        ".tril_(piece.prefix)",
        ".tril_(piece.prefix + 1)",
        BY_DEFINITION,
    ),
    Mutant(
        "a reply after a shared prompt does not see its own token",
        "models/packing/attention.py",
        ".tril_(piece.prefix)",
        ".tril_(piece.prefix - 1)",
        BY_DEFINITION,
    ),
    Mutant(
        "end of the prompt taken for its beginning",
        "models/packing/attention.py",
        "k = torch.cat((keys[piece.source][:, :, : piece.prefix], k), dim=2)",
        "k = torch.cat((keys[piece.source][:, :, -piece.prefix :], k), dim=2)",
        BY_DEFINITION,
    ),
    Mutant(
        "a layer's own scale of attention forgotten in packed rows",
        "models/packing/attention.py",
        "dropout=dropout, scaling=scaling), None",
        "dropout=dropout), None",
        (f"{PACKING}::test_a_networks_own_scale_of_attention_is_kept", PACKING),
    ),
    Mutant(
        "attention dropout forgotten in packed rows",
        "models/packing/attention.py",
        "dropout=dropout, scaling=scaling), None",
        "scaling=scaling), None",
        (f"{PACKING}::test_attention_dropout_is_applied_in_training_only", PACKING),
    ),
    Mutant(
        "prefix one token too long on GPUs",
        "models/packing/flex.py",
        "(k < prefix_end[q])",
        "(k <= prefix_end[q])",
        FLEX,
    ),
    Mutant(
        "blocks of the mask that are partly empty taken for full ones",
        "models/packing/flex.py",
        "((first >= own) & (last <= token))",
        "((first >= own) & (first <= token))",
        FLEX,
    ),
)
