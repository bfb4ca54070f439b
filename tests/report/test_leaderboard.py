"""The leaderboard of an exact world: its order, its interval over seeds, and what it does not say."""

import csv
import io
import json
import math
import re

import pytest
from rich.console import Console

from alignlab.report.build import build_report
from alignlab.report.console import print_summary
from alignlab.report.leaderboard import leaderboard_rows
from alignlab.report.summary import summarise
from tests.report.fabricated import exact_history, write_exact, write_policy, write_reward_model, write_run

T2 = 4.302653  # t(2 degrees of freedom, 97.5%)
UNTRAINED = {"method": {"max_steps": 0}}
WORLD = {"vocab_size": 8, "beta": 0.5}


def needs(runs):
    """An untrained base, three seeds of dpo, and one each of ipo and of a policy worse than the reference."""
    return {
        "base": [write_exact(runs, "base", method="sft", share=-2.2, reward=0.2, config=UNTRAINED, history=[])],
        "dpo": [
            write_exact(runs, "dpo", method="dpo", share=share, seed=seed, kl=1.0 + seed, seconds=10.0 * (1 + seed))
            for seed, share in enumerate((0.90, 0.95, 1.00))
        ],
        "simpo": [write_exact(runs, "simpo", method="dpo", share=-3.0, kl=9.0, reward=0.1)],
        "ipo": [write_exact(runs, "ipo", method="dpo", share=0.97, ipo_share=0.999)],
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("exact")
    metrics = build_report(
        root / "table", needs(root / "runs"), title="The exact world", next_commands=["alignlab ls"], baseline=None
    )
    return root / "table", metrics


def read_csv(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def printed(folder, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    print_summary(folder, console=console)
    return console.export_text()


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_file_of_an_exact_report_is_written(report):
    folder, _ = report
    found = {path.relative_to(folder / "report").as_posix() for path in folder.rglob("*") if path.is_file()}
    tables = {
        f"tables/{name}.{end}" for name in ("summary", "leaderboard", "phases") for end in ("csv", "json", "md", "tex")
    }
    figures = {"figures/leaderboard.png", "figures/exact_frontier.png"}
    assert found == tables | figures | {"report.md", "report.html", "report.json"}


def test_rows_stand_by_their_share_best_first_and_the_untrained_one_is_no_contender(report):
    rows = read_csv(report[0] / "report" / "tables" / "leaderboard.csv")
    assert [row["policy"] for row in rows] == ["ipo", "dpo", "simpo"]


def test_the_interval_is_student_t_over_seeds(report):
    # 0.90, 0.95, 1.00: mean 0.95, s = 0.05, and 4.302653 * 0.05 / sqrt(3) = 0.124207
    row = read_csv(report[0] / "report" / "tables" / "leaderboard.csv")[1]
    half = T2 * 0.05 / math.sqrt(3)
    assert float(row["share"]) == pytest.approx(0.95)
    assert float(row["share_low"]) == pytest.approx(0.95 - half, rel=1e-6)
    assert float(row["share_high"]) == pytest.approx(0.95 + half, rel=1e-6)
    assert float(row["regret"]) == pytest.approx(0.025)
    assert float(row["regret_high"]) == pytest.approx(0.025 + half / 2, rel=1e-6)
    assert (float(row["kl"]), float(row["reward"]), float(row["seconds"])) == pytest.approx((2.0, 1.4, 20.0))
    assert row["seeds"] == "3" and row["ipo_share"] == ""
    assert read_csv(report[0] / "report" / "tables" / "leaderboard.csv")[0]["share_low"] == ""  # one seed: no interval


def test_the_table_shows_percent_with_one_decimal_and_regret_with_four(report):
    lines = (report[0] / "report" / "tables" / "leaderboard.md").read_text().splitlines()
    headers = ["policy", "method", "share of optimum", "regret", "KL (nats)", "reward", "own optimum", "time (s)"]
    assert cells_of(lines[0]) == [*headers, "seeds"]
    assert cells_of(lines[2]) == ["ipo", "dpo", "97.0%", "0.0150", "1.000", "1.400", "99.9%", "40.0", "1"]
    assert cells_of(lines[3]) == ["dpo", "dpo", "95.0% [82.6, 107.4]", "0.0250", "2.000", "1.400", "-", "20.0", "3"]
    assert cells_of(lines[4])[2:4] == ["-300.0%", "2.0000"]


def test_the_report_holds_the_table_and_says_what_its_numbers_are(report):
    page = (report[0] / "report" / "report.md").read_text()
    assert "## Leaderboard" in page and "95.0% [82.6, 107.4]" in page and "## Summary" not in page
    for words in ("nothing is sampled", "Student t over seeds", "E[p(y > mu)] - tau KL", "nats per response"):
        assert words in page
    assert "held-out prompts" not in page and "left out, because untrained: base." in page
    assert "shares below -50% are not shown" in page
    html = (report[0] / "report" / "report.html").read_text()
    assert "95.0% [82.6, 107.4]" in html and html.count("data:image/png") == 2


def test_there_is_no_own_optimum_where_no_run_has_one(tmp_path):
    runs = {"dpo": [write_exact(tmp_path, "dpo", method="dpo", share=0.5)]}
    build_report(tmp_path / "table", runs, title="t", next_commands=[], baseline=None)
    text = (tmp_path / "table" / "report" / "tables" / "leaderboard.md").read_text()
    assert "own optimum" not in text and "one run each, no interval" in text
    assert "exact_frontier.png" in (tmp_path / "table" / "report" / "report.md").read_text()


def test_the_summary_csv_keeps_its_columns_with_exact_figures_in_them(report):
    rows = {row["policy"]: row for row in read_csv(report[0] / "report" / "tables" / "summary.csv")}
    assert list(rows) == ["base", "dpo", "simpo", "ipo"]
    half = T2 * 1.0 / math.sqrt(3)  # KL 1, 2, 3
    assert float(rows["dpo"]["gold_reward"]) == pytest.approx(1.4)
    assert float(rows["dpo"]["kl_low"]) == pytest.approx(2.0 - half, rel=1e-6)
    # the base's KL is to another reference than that of the others, so it is not put beside theirs
    assert (float(rows["base"]["gold_reward"]), rows["base"]["kl"]) == (0.2, "")


def test_headline_figures_have_plain_names(report):
    _, metrics = report
    assert metrics["dpo/share"] == pytest.approx(0.95)
    assert metrics["ipo/ipo_share"] == 0.999 and metrics["simpo/regret"] == 2.0
    assert "base/share" not in metrics


def test_the_console_prints_the_leaderboard_and_no_empty_summary(report):
    text = printed(report[0])
    assert text.startswith("The exact world\n")
    assert "95.0% [82.6, 107.4]" in text and "gold reward" not in text
    assert text.index("ipo") < text.index("dpo") < text.index("simpo")
    table = [line for line in text.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, table)) <= 80 and all(line.endswith(("│", "┃")) for line in table)
    assert "more columns in" in text and text.rstrip().endswith("alignlab ls")
    assert "more columns" not in printed(report[0], width=120)


def test_sampled_and_exact_policies_have_a_table_each(tmp_path):
    runs = {
        "sft": [write_policy(tmp_path, "sft", method="sft", gold=1.0, proxy=0.0, kl=0.0)],
        "dpo": [write_exact(tmp_path, "dpo", method="dpo", share=0.9)],
    }
    build_report(tmp_path / "table", runs, title="Both", next_commands=[], baseline=None)
    tables = tmp_path / "table" / "report" / "tables"
    assert [row["policy"] for row in read_csv(tables / "leaderboard.csv")] == ["dpo"]
    assert "dpo" not in (tables / "summary.md").read_text()
    text = printed(tmp_path / "table")
    assert text.index("gold reward") < text.index("leaderboard") < text.index("90.0%")


def test_an_evaluation_shows_the_exact_figures_of_its_training_and_its_own_samples(tmp_path):
    evaluation = write_policy(tmp_path, "dpo", method="dpo", gold=1.0, proxy=0.0, kl=3.0)
    trained = tmp_path / "dpo-a1b2c3d40" / "run.json"
    content = json.loads(trained.read_text()) | {"metrics": {"exact/share": 0.8, "exact/kl": 2.5}, "wall_seconds": 7}
    trained.write_text(json.dumps(content))
    row = summarise({"dpo": [evaluation]}, baseline=None)[0]
    assert (row.values["kl"], row.values["gold_reward"]) == (3.0, 1.0)
    board = leaderboard_rows([row])[0].values
    assert (board["share"], board["kl"], board["seconds"]) == (0.8, 2.5, 7.0)


def test_sampled_test_figures_of_a_training_do_not_replace_exact_ones(tmp_path):
    metrics = {"exact/share": 0.9, "exact/kl": 1.0, "exact/reward": 2.0, "test/kl": 1.1, "test/gold_reward": 2.2}
    run = write_run(tmp_path / "ppo-aaaaaaa1", config={}, task="train", method="ppo", metrics=metrics)
    values = summarise({"ppo": [run]}, baseline=None)[0].values
    assert (values["kl"], values["gold_reward"]) == (1.0, 2.0)


def test_a_seed_without_a_share_is_not_averaged_away(tmp_path):
    runs = {
        "bad": [write_exact(tmp_path, "bad", method="dpo", share=share, seed=i) for i, share in enumerate((0.9, None))],
        "good": [write_exact(tmp_path, "good", method="dpo", share=0.1)],
    }
    build_report(tmp_path / "table", runs, title="t", next_commands=[], baseline=None)
    lines = (tmp_path / "table" / "report" / "tables" / "leaderboard.md").read_text().splitlines()
    assert [cells_of(line)[0] for line in lines[2:4]] == ["good", "bad"]
    assert cells_of(lines[3])[2:4] == ["-", "-"]
    assert "share of optimum -: not a number in some run" in lines[-1]


def test_a_setting_that_stands_in_several_places_is_said_once(tmp_path):
    runs = [
        write_exact(
            tmp_path,
            f"dpo{beta}",
            method="dpo",
            share=0.9,
            config={
                "data": {"source": {"world": WORLD | {"beta": beta}}, "gold": {"world": WORLD | {"beta": beta}}},
                "method": {"loss": {"beta": beta}},
                "task": {"exact_points": points},
            },
        )
        for beta, points in ((0.1, 20), (0.5, 5))
    ]
    assert [row.label for row in summarise({"dpo": runs}, baseline=None)] == ["dpo beta=0.1", "dpo beta=0.5"]


def test_the_likelihood_gap_of_a_reward_model_is_a_column(tmp_path):
    plain = write_reward_model(tmp_path / "plain")
    build_report(tmp_path / "without", {"reward": [plain]}, title="t", next_commands=[], baseline=None)
    run = write_reward_model(tmp_path / "exact")
    content = json.loads((run / "run.json").read_text())
    content["metrics"] |= {"exact/likelihood_gap": 0.01234, "exact/share": 0.875}
    (run / "run.json").write_text(json.dumps(content))
    metrics = build_report(tmp_path / "table", {"reward": [run]}, title="t", next_commands=[], baseline=None)
    tables = tmp_path / "table" / "report" / "tables"
    assert metrics["reward/likelihood_gap"] == 0.01234
    assert read_csv(tables / "reward.csv")[0]["likelihood_gap"] == "0.01234"
    lines = (tables / "reward.md").read_text().splitlines()
    assert cells_of(lines[0])[-2:] == ["likelihood gap", "share of optimum"]
    assert cells_of(lines[2])[-2:] == ["0.0123", "87.5%"]
    assert not (tables / "leaderboard.md").exists()  # a reward model is no policy
    without = tmp_path / "without" / "report" / "tables"
    assert "likelihood" not in (without / "reward.csv").read_text() + (without / "reward.md").read_text()


def test_exact_reports_hold_no_nan_and_the_same_runs_give_the_same_bytes(report, tmp_path):
    build_report(
        tmp_path / "table",
        needs(tmp_path / "runs"),
        title="The exact world",
        next_commands=["alignlab ls"],
        baseline=None,
    )
    for path in report[0].rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "table" / path.relative_to(report[0])).read_bytes(), path.name
        if path.suffix in (".csv", ".md", ".tex", ".json"):
            assert not re.search(r"\b(nan|inf|None)\b", path.read_text(), re.IGNORECASE), path.name


def test_a_history_without_exact_lines_draws_no_curve(tmp_path):
    lines = [line for line in exact_history(0.9) if "exact/regret" not in line]
    runs = {"dpo": [write_exact(tmp_path, "dpo", method="dpo", share=0.9, history=lines)]}
    build_report(tmp_path / "table", runs, title="t", next_commands=[], baseline=None)
    assert not (tmp_path / "table" / "report" / "figures" / "leaderboard.png").exists()
