"""A whole report from made-up run folders: every file is there, parses, and says what the runs said."""

import csv
import io
import json
import re
import struct

import pytest
from rich.console import Console

from alignlab.errors import DataError
from alignlab.report import contents
from alignlab.report.build import build_report
from alignlab.report.console import print_summary
from alignlab.report.summary import Row
from tests.report.fabricated import NUM_PROMPTS, quickstart, write_policy

COMMANDS = ["alignlab experiments=quickstart/dpo method.loss.beta=0.3", "alignlab chat runs/ppo"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The quickstart's report: its folder and the headline figures."""
    root = tmp_path_factory.mktemp("quick")
    folder = root / "runs" / "table"
    metrics = build_report(
        folder, quickstart(root / "runs"), title="The <whole> path", next_commands=COMMANDS, baseline="sft"
    )
    return folder, metrics


def read_csv(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_every_file_of_a_report_is_written(report):
    folder, _ = report
    found = {path.relative_to(folder / "report").as_posix() for path in folder.rglob("*") if path.is_file()}
    tables = {f"tables/{name}.{end}" for name in ("summary", "reward") for end in ("csv", "json", "md", "tex")}
    figures = {f"figures/{name}.png" for name in ("frontier", "curves", "lengths", "reward_model")}
    assert found == tables | figures | {"report.md", "report.html", "report.json"}


def test_the_csv_has_the_promised_columns_and_full_precision(report):
    rows = read_csv(report[0] / "report" / "tables" / "summary.csv")
    promised = "policy method gold_reward gold_reward_low gold_reward_high proxy_reward kl win_rate response_length"
    promised += " distinct_2 perplexity_reference eos_rate seeds"
    assert list(rows[0])[:13] == promised.split()
    assert [row["policy"] for row in rows] == ["base", "sft", "dpo", "ppo", "ppo_hacked"]
    ppo = rows[3]
    assert (float(ppo["gold_reward"]), float(ppo["gold_reward_low"])) == (7.1, 7.1 - 0.32)
    assert (ppo["method"], float(ppo["kl"]), ppo["seeds"]) == ("ppo", 10.0, "1")
    assert ppo["quality_rate"] == "0.975"
    assert rows[1]["win_rate"] == ""  # the baseline is not compared with itself


def test_win_rates_against_the_baseline_come_from_the_samples(report):
    _, metrics = report
    # every prompt's gold is the mean -+1 in step, so a policy wins all or loses all of the 40
    assert metrics["ppo/win_rate"] == 1.0
    assert metrics["base/win_rate"] == 0.0
    assert "sft/win_rate" not in metrics
    assert metrics["reward/accuracy"] > 0.85


def test_no_file_holds_a_nan(report):
    for path in report[0].rglob("*"):
        if path.suffix in (".csv", ".md", ".tex", ".json"):
            assert not re.search(r"\b(nan|inf|None)\b", path.read_text(), re.IGNORECASE), path.name
    assert not re.search(r">\s*(nan|inf|None)\b", (report[0] / "report" / "report.html").read_text())


def test_the_markdown_table_shows_means_with_their_intervals(report):
    lines = (report[0] / "report" / "tables" / "summary.md").read_text().splitlines()
    cells = [cell.strip() for cell in lines[5].strip("|").split("|")]
    assert cells[:6] == ["ppo", "ppo", "7.10 [6.78, 7.42]", "2.00 [1.90, 2.10]", "10.0", "100% [91, 100]"]
    assert cells[-1] == "98%" and lines[0].strip("| ").endswith("| quality")
    assert len({line.count("|") for line in lines[:7]}) == 1
    assert len({len(line) for line in lines[:7]}) == 1  # it lines up as plain text too


def test_each_table_says_what_its_numbers_are(report):
    note = (report[0] / "report" / "tables" / "summary.md").read_text().splitlines()[-1]
    for words in (f"over {NUM_PROMPTS} held-out prompts", "95% interval", "Student t", "Wilson", "nats per sequence"):
        assert words in note
    assert "temperature 1, at most 32 tokens" in note
    assert "Wilson" in (report[0] / "report" / "tables" / "reward.md").read_text().splitlines()[-1]


def test_the_latex_table_is_balanced_and_escaped(report):
    text = (report[0] / "report" / "tables" / "summary.tex").read_text()
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert r"ppo\_hacked & ppo" in text
    assert r"100\% [91, 100]" in text
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns is not None
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(columns.group(1)) - 1}
    assert text.count("rule") == 3 and text.rstrip().endswith(r"\end{tabular}")


def test_over_optimisation_is_named_with_its_numbers(report):
    text = (report[0] / "report" / "report.md").read_text()
    assert "over-optimised: its proxy reward is above ppo's (4.00 against 2.00), its gold reward below" in text
    assert "replies have become alike: distinct-2 0.10 against 0.60 of sft" in text
    about = json.loads((report[0] / "report" / "report.json").read_text())
    assert list(about["warnings"]) == ["ppo_hacked"]


def test_the_html_stands_alone_and_runs_nothing(report):
    html = (report[0] / "report" / "report.html").read_text()
    assert html.count('src="data:image/png;base64,') == 4
    assert not re.search(r"<script|<link|https?://|javascript:", html)
    assert "<title>The &lt;whole&gt; path</title>" in html
    assert "<b>ppo</b>" in html and "&lt;b&gt;ppo&lt;/b&gt;" in html  # ours is markup, the model's is text
    for tag in ("div", "table", "figure", "ul", "p", "pre", "tr", "td", "b"):
        assert len(re.findall(rf"<{tag}[\s>]", html)) == html.count(f"</{tag}>"), tag


def test_pictures_are_real_and_linked_from_the_markdown(report):
    out = report[0] / "report"
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (out / "report.md").read_text())
    assert len(links) == 4
    for link in links:
        data = (out / link).read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert width > 700 and height > 300


def test_replies_to_the_same_prompt_stand_side_by_side(report):
    text = (report[0] / "report" / "report.md").read_text()
    section = text.split("## Replies side by side")[1].split("**Request 1")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert [line.split("|")[1].strip() for line in lines] == ["base", "sft", "dpo", "ppo", "ppo_hacked"]
    assert all(r"\|" in line and "<br>next line" in line for line in lines)


def test_the_same_runs_give_the_same_bytes(report, tmp_path):
    build_report(
        tmp_path / "again", quickstart(tmp_path), title="The <whole> path", next_commands=COMMANDS, baseline="sft"
    )
    for path in report[0].rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(report[0])).read_bytes(), path.name


def test_the_summary_prints_table_warnings_paths_and_commands(report):
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(report[0], console=console)
    text = console.export_text()
    assert "7.10 [6.78, 7.42]" in text
    assert "! ppo_hacked: over-optimised" in text
    assert str(report[0] / "report" / "report.html") in text
    for command in COMMANDS:
        assert command in text
    table = [line for line in text.splitlines() if line.startswith(("│", "┃"))]
    assert len(table) == 6 and max(map(len, table)) <= 80


def test_a_report_without_a_baseline_or_rewards_is_still_one(tmp_path):
    run = write_policy(tmp_path, "sft", method="sft", gold=1.0, proxy=0.0, kl=0.0)
    metrics = build_report(tmp_path / "table", {"sft": [run]}, title="One", next_commands=[], baseline=None)
    assert metrics["sft/gold_reward"] == 1.0
    assert "win rate" not in (tmp_path / "table" / "report" / "report.md").read_text()


def test_wrong_input_is_named(tmp_path):
    run = write_policy(tmp_path, "sft", method="sft", gold=1.0, proxy=0.0, kl=0.0)
    settings = {"title": "x", "next_commands": [], "baseline": None}
    with pytest.raises(DataError, match="at least one run folder"):
        build_report(tmp_path / "table", {"sft": []}, **settings)
    with pytest.raises(DataError, match="baseline=dpo is none of the needs; they are sft"):
        build_report(tmp_path / "table", {"sft": [run]}, **settings | {"baseline": "dpo"})
    with pytest.raises(DataError, match=r"nowhere/run\.json: no such file"):
        build_report(tmp_path / "table", {"sft": [tmp_path / "nowhere"]}, **settings)
    (run / "run.json").write_text(json.dumps({"status": "running"}))
    with pytest.raises(DataError, match="status is 'running'; a report needs finished runs"):
        build_report(tmp_path / "table", {"sft": [run]}, **settings)
    with pytest.raises(DataError, match=r"no report/report\.json"):
        print_summary(tmp_path / "other")


def test_an_untrained_policy_far_away_is_named_but_not_drawn_or_suspected(tmp_path):
    far = write_policy(
        tmp_path, "base", method="sft", gold=-3.0, proxy=9.0, kl=400.0, config={"method": {"max_steps": 0}}
    )
    sft = write_policy(tmp_path, "sft", method="sft", gold=0.0, proxy=0.0, kl=0.0)
    dpo = write_policy(tmp_path, "dpo", method="dpo", gold=1.0, proxy=1.0, kl=6.0)
    runs = {"base": [far], "sft": [sft], "dpo": [dpo]}
    build_report(tmp_path / "table", runs, title="t", next_commands=[], baseline="sft")
    page = (tmp_path / "table" / "report" / "report.md").read_text()
    assert "off the scale: base at 400 nats" in page
    assert json.loads((tmp_path / "table" / "report" / "report.json").read_text())["warnings"] == {}
    assert (tmp_path / "table" / "report" / "tables" / "summary.csv").read_text().splitlines()[1].startswith("base,,")


def test_where_nothing_is_gold_sentences_and_replies_tell_the_proxy():
    def row(need: str, mean: float) -> Row:
        figures = {"proxy_reward": mean, "proxy_reward_low": mean - 0.5, "proxy_reward_high": mean + 0.5, "kl": 3.0}
        return Row(need, need, (), figures)

    said = contents.headline([row("sft", 0.0), row("dpo", 1.25), row("ppo", 0.75)], baseline="sft", flagged={})
    assert said == [
        "sft: proxy reward 0.00 [-0.50, 0.50] at a KL of 3.0 nats",
        "dpo: proxy reward 1.25 [0.75, 1.75] at a KL of 3.0 nats; above sft (intervals apart)",
        "ppo: proxy reward 0.75 [0.25, 1.25] at a KL of 3.0 nats; not apart from sft's interval",
    ]
    sample = {"gold_reward": None, "proxy_reward": 0.5, "kl": 2.0, "length": 7}
    assert contents._figures(sample) == "proxy 0.50, KL 2.0, 7 tokens"
    assert contents._figures(sample | {"gold_reward": 1.0}) == "gold 1.00, KL 2.0, 7 tokens"
