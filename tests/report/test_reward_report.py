"""The report of reward models: parts, styles and length, read from what an evaluation wrote."""

import csv
import json

import pytest

from alignlab.evaluate.reward import summarise_scores
from alignlab.evaluate.saving import save_evaluation
from alignlab.report.reward import build_reward_report, reward_tables
from alignlab.report.reward_seeds import content_over_seeds
from alignlab.rows import PairFacts

STYLED = [
    PairFacts(prompt, 9 - i, 5 + j, "chat" if prompt == 0 else "code", (i, j))
    for prompt in range(2)
    for i in range(3)
    for j in range(3)
]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def evaluation(scale: float = 1.0):
    """Chosen scores 1, 3, 5 against 2, 4, 6 in both records."""
    chosen = [scale * score for score in (1, 1, 1, 3, 3, 3, 5, 5, 5)] * 2
    return summarise_scores(chosen, [scale * score for score in (2, 4, 6)] * 6, facts=STYLED)


def test_the_report_of_one_reward_model_has_its_tables_and_says_what_was_measured(tmp_path):
    save_evaluation(tmp_path, "reward", evaluation())
    build_reward_report(tmp_path, "mine")
    out = tmp_path / "report"
    first, second, third = read(out / "tables" / "reward_styles.csv")[:3]
    assert [first[f"rejected {j}"] for j in range(3)] == ["0.0", "0.0", "0.0"]
    assert [second[f"rejected {j}"] for j in range(3)] == ["1.0", "0.0", "0.0"]
    assert (third["part"], third["chosen"], third["rejected 1"]) == ("all", "style 2", "1.0")
    assert (first["easy"], first["normal"], first["hard"], second["easy"]) == ("1.0", "0.0", "0.0", "")
    parts = read(out / "tables" / "reward_subsets.csv")
    assert [(row["part"], row["pairs"], float(row["accuracy"])) for row in parts] == [
        ("chat", "9", 3 / 9),
        ("code", "9", 3 / 9),
    ]
    [length] = read(out / "tables" / "reward_length.csv")
    # lengths 9, 8, 7 against 5, 6, 7: longer in 8 of 9 pairs, equal in one
    assert float(length["longer wins"]) == 8.5 / 9 and length["pairs shorter"] == "0" and "chosen shorter" not in length
    text = (out / "report.md").read_text()
    assert "# Reward model mine" in text and "33.3%" in text and "figures/reward_model.png" in text
    assert (out / "figures" / "reward_model.png").stat().st_size > 0


def test_models_side_by_side_are_named_and_what_was_not_measured_has_no_table(tmp_path):
    for name, found in (("one", evaluation()), ("two", evaluation(-1.0)), ("bare", summarise_scores([1.0], [0.0]))):
        save_evaluation(tmp_path / name, "reward", found)
    contents = {n: json.loads((tmp_path / n / "eval" / "reward.json").read_text()) for n in ("one", "two", "bare")}
    reward_tables(contents, tmp_path)
    rows = read(tmp_path / "tables" / "reward_length.csv")
    assert [(row["reward model"], round(float(row["accuracy"]), 3)) for row in rows] == [("one", 0.333), ("two", 0.667)]
    assert reward_tables({"bare": contents["bare"]}, tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_two_seeds_are_shown_as_their_means_with_student_t_and_their_pairs_together(tmp_path):
    contents = []
    for seed, found in enumerate((evaluation(), evaluation(-1.0))):  # right in 3 and in 6 of 9 pairs of each part
        save_evaluation(tmp_path / str(seed), "reward", found)
        contents.append(json.loads((tmp_path / str(seed) / "eval" / "reward.json").read_text()))
    merged = content_over_seeds(contents)
    half = 12.7062047 * (1 / 6)  # t(1 degree of freedom) x s / sqrt(2), with s = (2/3 - 1/3) / sqrt(2)
    for metrics in (merged["metrics"], *(part["metrics"] for part in merged["subsets"])):
        assert metrics["accuracy"] == pytest.approx(0.5)
        assert metrics["accuracy_low"] == pytest.approx(0.5 - half, abs=1e-6)
        assert metrics["accuracy_high"] == pytest.approx(0.5 + half, abs=1e-6)
    assert [part["name"] for part in merged["subsets"]] == ["chat", "code"]
    assert merged["styles"][1] == [0.5, 0.5, 0.5] and len(merged["margins"]) == 36
    filled = [each for each in merged["calibration"] if each["count"]]
    assert sum(each["count"] for each in filled) == 36 and all(each["accuracy"] == 0.5 for each in filled)
    reward_tables({"mine": merged}, tmp_path)
    assert [float(row["accuracy"]) for row in read(tmp_path / "tables" / "reward_subsets.csv")] == [0.5, 0.5]
    assert content_over_seeds(contents[:1]) is contents[0] and content_over_seeds([{}, contents[0]]) == {}


def test_bins_of_two_seeds_are_pooled_by_their_pairs():
    def content(count, confidence, accuracy):
        bins = [{"low": 0.5, "high": 1.0, "count": count, "confidence": confidence, "accuracy": accuracy}]
        return {"metrics": {}, "margins": [], "calibration": bins, "subsets": [], "styles": []}

    [pooled] = content_over_seeds([content(1, 0.6, 0.0), content(3, 0.8, 1.0)])["calibration"]
    assert pooled == {"low": 0.5, "high": 1.0, "count": 4, "confidence": pytest.approx(0.75), "accuracy": 0.75}
    [alone] = content_over_seeds([content(0, None, None), content(2, 0.9, 0.5)])["calibration"]
    assert (alone["count"], alone["accuracy"]) == (2, 0.5)


def test_a_cell_that_a_seed_lacks_has_no_mean_and_matrices_of_two_sizes_have_none():
    def content(styles):
        return {"metrics": {}, "margins": [], "calibration": [], "subsets": [], "styles": styles}

    merged = content_over_seeds([content([[0.2, None], [1.0, 0.0]]), content([[0.4, 0.5], [0.0, 1.0]])])
    assert merged["styles"] == [[pytest.approx(0.3), None], [0.5, 0.5]]
    assert content_over_seeds([content([[0.2]]), content([[0.4, 0.5], [0.0, 1.0]])])["styles"] == []
