"""Rewards: functions by hand, trained reward models through their own tokenizer."""

from pathlib import Path

import pytest
import torch

from alignlab.batches import IGNORE, Sequences
from alignlab.errors import ConfigError, DataError
from alignlab.models.reward_model import RewardModel, TextFormat
from alignlab.models.saving import save_reward_model
from alignlab.rollout.rewards.bag_of_words import BagOfWordsReward
from alignlab.rollout.rewards.length import LengthReward
from alignlab.rollout.rewards.lexicon import LexiconReward
from alignlab.rollout.rewards.model import ModelReward
from alignlab.rollout.rewards.regex import RegexReward
from alignlab.rollout.rewards.weighted import WeightedReward
from tests import tiny_models as tiny

TEXTS = ["Good, good day!", "isn't bad", ""]
PROMPTS = ["p"] * 3


def test_length_counts_words_or_characters_or_the_way_to_a_target() -> None:
    assert LengthReward()(PROMPTS, TEXTS).tolist() == [3, 2, 0]
    assert LengthReward(unit="characters", scale=-0.5)(PROMPTS, TEXTS).tolist() == [-7.5, -4.5, 0]
    assert LengthReward(target=2)(PROMPTS, TEXTS).tolist() == [-1, 0, -2]
    with pytest.raises(ConfigError, match="words or characters"):
        LengthReward(unit="tokens")  # type: ignore[arg-type]


def test_lexicon_sums_the_valences_of_lower_cased_words(tmp_path: Path) -> None:
    file = tmp_path / "lexicon.txt"
    file.write_text("good\t1.5\t0.3\t[1, 2]\nbad\t-2.0\nisn't\t-0.25\n\n")
    assert LexiconReward(str(file), scale=2.0)(PROMPTS, TEXTS).tolist() == [6.0, -4.5, 0.0]


def test_a_lexicon_says_which_line_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        LexiconReward(str(tmp_path / "absent"))
    file = tmp_path / "lexicon.txt"
    file.write_text("good\t1.5\nbad -2\n")
    with pytest.raises(DataError, match=r"lexicon.txt:2: expected token, tab, valence"):
        LexiconReward(str(file))


def test_the_real_lexicon_is_read(real_data: Path) -> None:
    reward = LexiconReward(str(real_data / "lexicon-vader" / "vader_lexicon.txt"))
    assert reward(["p"], ["happy and sad"]).item() == pytest.approx(2.7 - 2.1)


def weights_file(folder: Path, text: str) -> str:
    file = folder / "weights.json"
    file.write_text(text)
    return str(file)


def test_a_bag_of_words_sums_distinct_known_features_over_the_root_of_their_number(tmp_path: Path) -> None:
    weights = '{"bias": 0.5, "weights": {"good": 2.0, "day": -1.0, "good day": 3.0, "isn\'t bad": 4.0, "b good": 9}}'
    path = weights_file(tmp_path, weights)
    # good (twice, counted once), day, "good day": 4 / sqrt(3); the pair alone: 4 / 1; nothing known: the bias
    expected = [0.5 + 4 / 3**0.5, 4.5, 0.5]
    assert BagOfWordsReward(path)(PROMPTS, TEXTS).tolist() == pytest.approx(expected)
    assert BagOfWordsReward(path, scale=-2.0)(PROMPTS, TEXTS).tolist() == pytest.approx([-2 * x for x in expected])
    # a line break is a space, so the words on its two sides are a pair
    assert BagOfWordsReward(path)(["p"], ["GOOD<br />Day"]).tolist() == pytest.approx([0.5 + 4 / 3**0.5])


def test_a_bag_of_words_may_read_the_prompt_too(tmp_path: Path) -> None:
    path = weights_file(tmp_path, '{"bias": 0, "weights": {"good": 1.0, "not good": -3.0}}')
    assert BagOfWordsReward(path)(["not"], [" good"]).tolist() == [1.0]
    assert BagOfWordsReward(path, with_prompt=True)(["not"], [" good"]).tolist() == pytest.approx([-2 / 2**0.5])
    with pytest.raises(ConfigError, match="with_prompt"):
        BagOfWordsReward(path, with_prompt=True)([({"role": "user", "content": "a"},)], ["good"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "broken JSON"),
        ('{"weights": [1]}', "expected {'bias': number"),
        ('{"weights": {"a": 1}}', "the weight of 'bias' is None"),
        ('{"bias": 0, "weights": {"a": "1"}}', "the weight of 'a' is '1'"),
        ('{"bias": 0, "weights": {"a": NaN}}', "the weight of 'a' is nan"),
    ],
)
def test_weights_of_another_form_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        BagOfWordsReward(weights_file(tmp_path, text))
    with pytest.raises(ConfigError, match="no such file"):
        BagOfWordsReward(str(tmp_path / "absent.json"))


def test_the_real_weights_give_the_scores_that_were_published_with_them(real_data: Path) -> None:
    reward = BagOfWordsReward(str(real_data / "reward-imdb-bow" / "weights.json"))
    texts = [
        "A wonderful, moving film. I loved every minute of it.",
        "What a waste of time. The plot is awful and the acting is terrible.",
    ]
    assert reward(["p", "p"], texts).tolist() == pytest.approx([3.69, -6.86], abs=0.005)


def test_regex_counts_matches_up_to_a_limit() -> None:
    assert RegexReward("good")(PROMPTS, TEXTS).tolist() == [1, 0, 0]
    assert RegexReward("good", ignore_case=True, max_matches=None, scale=3.0)(PROMPTS, TEXTS).tolist() == [6, 0, 0]
    with pytest.raises(ConfigError, match="not a regular expression"):
        RegexReward("(")


def test_weighted_sums_its_parts_by_name() -> None:
    reward = WeightedReward(
        rewards={"length": LengthReward(), "good": RegexReward("good")}, weights={"length": -0.5, "good": 10.0}
    )
    assert reward(PROMPTS, TEXTS).tolist() == [8.5, -1.0, 0.0]
    assert reward.parts(PROMPTS, TEXTS)["length"].tolist() == [3, 2, 0]
    with pytest.raises(ConfigError, match="names must agree"):
        WeightedReward(rewards={"a": LengthReward()}, weights={"b": 1.0})


def reward_run(folder: Path, kind: str, *, append_eos: bool = True) -> RewardModel:
    """Saves a tiny reward model with a scale and a text format as a run would."""
    reward_model = RewardModel(tiny.tiny_classifier(kind), tokenizer=tiny.tiny_tokenizer())
    reward_model.normalize(torch.tensor([1.0, 3.0]))
    reward_model.text_format = TextFormat(template="plain", append_eos=append_eos, stop_token_ids=(2,), max_length=64)
    save_reward_model(reward_model, folder)
    (folder / "run.json").write_text("{}")
    return reward_model.eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "distilbert"])
def test_a_reward_model_scores_the_text_it_would_have_been_trained_on(kind: str, tmp_path: Path) -> None:
    trained = reward_run(tmp_path, kind)
    prompts, responses = ["a longer prompt ", "hello "], ["ok", "there."]  # read in order of length, answered in this
    scores = ModelReward(str(tmp_path), batch_size=1)(prompts, responses)
    assert scores.dtype == torch.float32
    for prompt, response, score in zip(prompts, responses, scores, strict=True):
        ids = torch.tensor([[*trained.tokenizer(prompt + response)["input_ids"], 2]])
        with torch.no_grad():
            raw = trained(Sequences(ids, torch.ones_like(ids, dtype=torch.bool), torch.full_like(ids, IGNORE)))
        assert score.item() == pytest.approx(trained.normalized(raw).item(), abs=1e-5)


def test_batching_and_order_change_no_score(tmp_path: Path) -> None:
    reward_run(tmp_path, "gpt2", append_eos=False)
    prompts, responses = [f"prompt {i} " for i in range(5)], ["a" * (7 - i) for i in range(5)]
    one_by_one, together = (ModelReward(str(tmp_path), batch_size=size)(prompts, responses) for size in (1, 3))
    torch.testing.assert_close(one_by_one, together, atol=1e-5, rtol=0)
    assert together.unique().numel() == 5


def test_a_model_reward_is_no_module_and_frozen(tmp_path: Path) -> None:
    reward_run(tmp_path, "llama")
    reward = ModelReward(str(tmp_path)).to("cpu")
    assert not isinstance(reward, torch.nn.Module)
    assert not any(p.requires_grad for p in reward.reward_model.parameters())
    assert not reward.reward_model.training
