"""The exact world as data: what is drawn, how it is labelled, and that texts, tokens and networks mean the same."""

import math

import pytest
import torch

from alignlab.batches import IGNORE, PreferenceBatch, PromptBatch, SFTBatch
from alignlab.data.module import DataModule
from alignlab.errors import ConfigError, DataError
from alignlab.models.source import ModelSource
from alignlab.rollout.generate import generate
from alignlab.rows import PreferenceRow, PromptRow, SFTRow, UnpairedRow
from alignlab.worlds.exact import (
    Automaton,
    ExactReward,
    ExactSource,
    ExactWorld,
    Script,
    build_tokenizer,
    every_response,
    response_logprobs,
)


def make_world(**settings) -> ExactWorld:
    return ExactWorld(4, 3, Automaton(4, scale=1.0, seed=1), 0.5, **settings)


def numbers(world: ExactWorld, rows: list[PreferenceRow]) -> list[tuple[int, int]]:
    script = Script(world)
    return [(script.number(row.chosen), script.number(row.rejected)) for row in rows]


def make_data(source: ExactSource, row_type: type, **settings) -> DataModule:
    data = DataModule(
        source=source,
        tokenizer=build_tokenizer(4),
        row_type=row_type,
        stop_token_ids=(0,),
        seed=0,
        max_length=Script(source.world).prompt_length + 3,
        **{"batch_size": 16, **settings},
    )
    data.prepare()
    return data


def tiny_policy(vocab_size: int = 4):
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = {"model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": 16, **shape}
    settings |= {"initializer_range": 0.4, "tie_word_embeddings": False}
    return ModelSource(architecture=settings, tokenizer=build_tokenizer(vocab_size)).load_policy().eval()


# -- texts -------------------------------------------------------------------------------------------------------------
def test_texts_are_letters_and_come_back():
    world = make_world(num_prompts=5)
    script = Script(world)
    assert script.response((1, 3, 0)) == "ac" and script.response((0,)) == "<eos>"
    assert script.response((2, 2, 2)) == "bbb"
    assert [script.number(script.response(tokens)) for tokens in world.responses] == list(range(40))
    assert script.number("") == 0  # a reply that ended at once, as a rollout decodes it
    assert script.prompts == ["aa", "ab", "ac", "ba", "bb"] and script.prompt_tokens(3) == [2, 1]
    assert make_world().num_prompts is None and Script(make_world()).prompts == ["a"]
    other_end = ExactWorld(3, 2, lambda t: 0.0, 1.0, eos_id=1)
    assert Script(other_end).response((2, 0)) == "ba"


def test_the_tokenizer_has_the_worlds_ids():
    tokenizer = build_tokenizer(4, eos_id=2)
    assert tokenizer("abc")["input_ids"] == [0, 1, 3] and tokenizer.eos_token_id == 2 and len(tokenizer) == 4
    assert tokenizer.decode([3, 0, 2], skip_special_tokens=True) == "ca"
    with pytest.raises(ConfigError, match="vocab_size=99"):
        build_tokenizer(99)


def test_the_reward_of_texts_is_the_worlds():
    one, many = make_world(), make_world(num_prompts=2)
    assert ExactReward(one)(["a", "a"], ["ac", ""]).tolist() == pytest.approx(
        [one.rewards[one.tree.number((1, 3, 0))].item(), one.rewards[0].item()]
    )
    assert ExactReward(many)(["b", "a"], ["ccc", "ccc"]).tolist() == pytest.approx(many.rewards.flip(0)[:, -1].tolist())


@pytest.mark.parametrize("num_prompts", [None, 5])
def test_encoded_rows_are_the_worlds_responses_token_for_token(num_prompts):
    """Finished responses end with one supervised EOS, those that stop at the greatest length with none."""
    world = make_world(num_prompts=num_prompts)
    script = Script(world)

    class Everything(ExactSource):
        fresh_rows = None

        def rows(self, row_type, split):
            for prompt in script.prompts if split == "train" else []:
                for tokens in world.responses:
                    yield SFTRow(prompt, script.response(tokens))

    data = make_data(Everything(world), SFTRow, batch_size=1000)
    [batch] = list(data.batches("train"))
    assert isinstance(batch, SFTBatch)
    expected = every_response(world)
    assert torch.equal(batch.sequences.labels, expected.labels)
    assert torch.equal(batch.sequences.attention_mask, expected.attention_mask)
    real = expected.attention_mask
    assert torch.equal(batch.sequences.input_ids[real], expected.input_ids[real])
    assert (expected.labels != IGNORE).sum() == world.lengths.sum() * (num_prompts or 1)


# -- networks ----------------------------------------------------------------------------------------------------------
def test_a_network_gives_a_distribution_over_the_responses():
    world, policy = make_world(num_prompts=5), tiny_policy()
    with torch.no_grad():
        logprobs = response_logprobs(lambda s: policy(s).logprobs, world)
        in_pieces = response_logprobs(lambda s: policy(s).logprobs, world, batch_size=7)
    assert logprobs.shape == (5, 40) and logprobs.dtype == torch.float64
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(5, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(logprobs, in_pieces, atol=1e-5, rtol=0)
    assert (logprobs[0] - logprobs[1]).abs().max() > 0.1  # the prompt matters


def test_sampled_replies_have_the_enumerated_probabilities():
    world, policy = make_world(), tiny_policy()
    with torch.no_grad():
        probabilities = response_logprobs(lambda s: policy(s).logprobs, world).exp()
    ids = torch.ones(4000, 1, dtype=torch.int64)
    prompts = PromptBatch(ids, ids.bool(), torch.arange(4000), ("a",) * 4000)
    rollout = generate(policy, prompts, max_new_tokens=3, generator=torch.Generator().manual_seed(0))
    script = Script(world)
    counts = torch.bincount(torch.tensor([script.number(text) for text in rollout.responses]), minlength=40)
    spread = (4000 * probabilities * (1 - probabilities)).sqrt().clamp(min=1.0)
    assert ((counts - 4000 * probabilities).abs() < 5 * spread).all()


def test_pairs_come_from_the_reference_that_is_given():
    policy, world = tiny_policy(), make_world()
    source = ExactSource(world, reference=policy)
    assert source.world.rewards is world.rewards
    with torch.no_grad():
        expected = response_logprobs(lambda s: policy(s).logprobs, world)
    torch.testing.assert_close(source.world.ref_logprobs, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(source.world.ref_logprobs, world.ref_logprobs, atol=0.1)


# -- pairs and labels --------------------------------------------------------------------------------------------------
def drawn(source: ExactSource, number: int, row_type: type = PreferenceRow) -> list:
    assert source.fresh_rows is not None
    return list(source.fresh_rows(row_type, step=0, batch_size=number, seed=0))


def test_pairs_are_drawn_as_often_as_the_population_weighs_them():
    world = ExactWorld(3, 2, Automaton(3, scale=1.0), 0.5, peakedness=1.0)
    rows = drawn(ExactSource(world), 20_000)
    listed = world.pairs()
    place = {(i, j): n for n, (i, j) in enumerate(zip(listed.first.tolist(), listed.second.tolist(), strict=True))}
    counts = torch.zeros(len(place), dtype=torch.float64)
    for (i, j), row in zip(numbers(world, rows), rows, strict=True):
        assert i != j
        counts[place[min(i, j), max(i, j)]] += 1
        assert row.preference == pytest.approx(torch.sigmoid(world.rewards[i] - world.rewards[j]).item())
    expected = 20_000 * listed.weight
    assert ((counts - expected).abs() < 5 * expected.sqrt() + 1).all()


def test_the_rows_of_a_step_are_a_function_of_seed_and_step():
    source = ExactSource(make_world(num_prompts=3))
    make = source.fresh_rows
    assert make is not None
    first = make(PreferenceRow, step=4, batch_size=8, seed=1)
    assert first == make(PreferenceRow, step=4, batch_size=8, seed=1)
    assert first != make(PreferenceRow, step=5, batch_size=8, seed=1)
    assert first != make(PreferenceRow, step=4, batch_size=8, seed=2)
    # prompts take turns, over the steps too: 4 * 8 = 32, and 32 % 3 = 2
    assert [row.prompt for row in first] == ["c", "a", "b", "c", "a", "b", "c", "a"]
    assert [row.prompt for row in make(PromptRow, step=1, batch_size=4, seed=0)] == ["b", "c", "a", "b"]


def test_labels_drawn_are_right_as_often_as_bradley_terry_says_and_flips_turn_them():
    world = make_world(peakedness=0.5)
    for flip_rate in (0.0, 0.3):
        rows = drawn(ExactSource(world, labels="bradley_terry", flip_rate=flip_rate), 8000)
        assert all(row.preference == 1 for row in rows)
        gaps = torch.tensor([(world.rewards[i] - world.rewards[j]).item() for i, j in numbers(world, rows)])
        right, chance = (gaps > 0).double(), gaps.abs().double().sigmoid()
        chance = (1 - flip_rate) * chance + flip_rate * (1 - chance)
        assert abs((right - chance).mean().item()) < 5 * math.sqrt(0.25 / 8000)


def test_labels_that_never_err_and_judges_who_like_it_long():
    world = make_world(peakedness=0.5)
    for row, (i, j) in zip(
        rows := drawn(ExactSource(world, labels="deterministic"), 200), numbers(world, rows), strict=True
    ):
        gap = (world.rewards[i] - world.rewards[j]).item()
        assert row.preference == (1.0 if gap > 0 else 0.0 if gap < 0 else 0.5)
    biased = drawn(ExactSource(world, length_bias=0.7), 200)
    for row, (i, j) in zip(biased, numbers(world, biased), strict=True):
        logit = world.rewards[i] - world.rewards[j] + 0.7 * (world.lengths[i] - world.lengths[j])
        assert row.preference == pytest.approx(logit.sigmoid().item())


def test_sampled_pairs_are_a_fixed_set_and_the_splits_differ():
    source = ExactSource(make_world(), pairs="sampled", num_pairs=50, num_held_out=20, seed=3)
    assert source.fresh_rows is None
    train, again = list(source.rows(PreferenceRow, "train")), list(source.rows(PreferenceRow, "train"))
    assert train == again and len(train) == 50
    test = list(source.rows(PreferenceRow, "test"))
    assert len(test) == 20 and test != train[:20]
    other = ExactSource(make_world(), pairs="sampled", num_pairs=50, seed=4)
    assert list(other.rows(PreferenceRow, "train")) != train


def test_the_population_is_every_pair_with_its_weight():
    world = make_world(num_prompts=2)
    rows = list(ExactSource(world, pairs="population").rows(PreferenceRow, "train"))
    assert len(rows) == 2 * 40 * 39 // 2 and sum(row.weight for row in rows) == pytest.approx(len(rows))
    listed, half = world.pairs(), len(rows) // 2
    assert [row.prompt for row in rows] == ["a"] * half + ["b"] * half
    weights = torch.tensor([row.weight for row in rows], dtype=torch.float64).reshape(2, half)
    torch.testing.assert_close(weights / len(rows), listed.weight)
    data = make_data(ExactSource(world, pairs="population"), PreferenceRow, batch_size=len(rows))
    batch = data.train_batch(0)
    assert isinstance(batch, PreferenceBatch) and batch.weight is not None and batch.preference is not None


def test_unpaired_rows_and_sft_rows_are_drawn_too():
    world = make_world()
    unpaired = drawn(ExactSource(world), 4000, UnpairedRow)
    liked = [world.rewards[Script(world).number(row.response)].item() for row in unpaired if row.desirable]
    not_liked = [world.rewards[Script(world).number(row.response)].item() for row in unpaired if not row.desirable]
    assert abs(len(liked) - 2000) < 200 and sum(liked) / len(liked) > sum(not_liked) / len(not_liked)
    texts = [row.response for row in drawn(ExactSource(world), 4000, SFTRow)]
    most = int(world.ref_logprobs.argmax())
    share = texts.count(Script(world).response(world.responses[most])) / 4000
    assert share == pytest.approx(world.ref_logprobs[most].exp().item(), abs=0.04)


def test_settings_that_do_not_go_together_are_refused_all_at_once():
    with pytest.raises(ConfigError) as refused:
        ExactSource(make_world(), pairs="sampled", labels="sofft", flip_rate=0.5)  # type: ignore[arg-type]
    assert [line.split(":")[0] for line in str(refused.value).splitlines()] == [
        "data.source.labels=sofft",
        "data.source.num_pairs=None",
        "data.source.flip_rate=0.5",
    ]
    with pytest.raises(ConfigError, match="fresh"):
        ExactSource(ExactWorld(8, 5, lambda t: 0.0, 1.0), pairs="population")
    with pytest.raises(DataError, match="no rows of type"):
        ExactSource(make_world()).fresh_rows(int, step=0, batch_size=1, seed=0)  # type: ignore[misc, arg-type]
