"""The report of reward models: parts, styles and length, read from what an evaluation wrote."""

import csv
import json

from alignlab.evaluate.reward import summarise_scores
from alignlab.evaluate.saving import save_evaluation
from alignlab.report.reward import build_reward_report, reward_tables
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
