"""Which settings are swept, which rows make a line, and what is drawn of it."""

import csv
import io

import pytest

from alignlab.report.build import build_report
from alignlab.report.labels import spread
from alignlab.report.lines import Line, Panel, draw_panels, drawable
from alignlab.report.summary import Row
from alignlab.report.sweeps import find_sweeps
from tests.report.fabricated import write_exact


def row(need, share=0.5, **settings):
    label = " ".join([need, *(f"{name}={value}" for name, value in settings.items())])
    return Row(label, need, (), {"share": share}, settings)


def labels(found):
    return {
        name: {line: [each.label for each in rows] for line, rows in lines.items()} for name, lines in found.items()
    }


def test_three_numbers_make_a_curve_in_their_order_and_two_do_not():
    rows = [row("dpo", num_pairs=n) for n in (1000, 100, 10000)] + [row("ipo", num_pairs=n) for n in (100, 1000)]
    ordered = ["dpo num_pairs=100", "dpo num_pairs=1000", "dpo num_pairs=10000"]
    assert labels(find_sweeps(rows)) == {"num_pairs": {"dpo": ordered}}


def test_words_flags_and_rows_without_a_share_are_no_points():
    values = (100, 1000, None, True, "all")
    lost = Row("dpo num_pairs=9", "dpo", (), {}, {"num_pairs": 9})
    assert find_sweeps([*(row("dpo", num_pairs=value) for value in values), lost]) == {}


def test_a_grid_of_two_settings_is_a_line_for_each_value_of_the_other():
    rows = [row("dpo", beta=beta, lr=lr) for beta in (0.1, 0.5) for lr in (1, 2, 3)]
    found = find_sweeps(rows)
    assert list(found) == ["lr"]
    assert list(found["lr"]) == ["dpo beta=0.1", "dpo beta=0.5"]
    assert [each.settings["lr"] for each in found["lr"]["dpo beta=0.5"]] == [1, 2, 3]


def test_settings_that_go_together_are_one_sweep():
    rows = [row("dpo", num_pairs=n, steps=10 * n) for n in (1, 2, 3)]
    assert {name: list(lines) for name, lines in find_sweeps(rows).items()} == {"num_pairs": ["dpo"]}


def test_needs_that_sweep_one_setting_share_its_figure():
    rows = [row(need, lr=lr) for need in ("dpo", "ipo") for lr in (1, 2, 3)]
    assert {name: list(lines) for name, lines in find_sweeps(rows).items()} == {"lr": ["dpo", "ipo"]}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """dpo over five numbers of pairs and two seeds, and once with all of them."""
    root = tmp_path_factory.mktemp("sweep")

    def run(pairs, share, seed):
        config = {"data": {"source": {"num_pairs": pairs}}}
        return write_exact(root, f"dpo{pairs}", method="dpo", share=share, seed=seed, config=config)

    shares = {100: -0.9, 300: 0.3, 1000: 0.6, 3000: 0.8, 10000: 0.9}
    runs = [run(pairs, share + 0.02 * seed, seed) for pairs, share in shares.items() for seed in (0, 1)]
    runs.append(run(None, 1.0, 0))
    build_report(root / "table", {"dpo": runs}, title="Pairs", next_commands=[], baseline=None)
    return root / "table" / "report"


def test_a_sweep_has_its_table_and_its_figure(report):
    rows = list(csv.DictReader(io.StringIO((report / "tables" / "curve.csv").read_text())))
    assert [row["num_pairs"] for row in rows] == ["100", "300", "1000", "3000", "10000"]
    # 0.60 and 0.62: mean 0.61, s = 0.02 / sqrt(2), t(1, 97.5%) = 12.706205, half = 12.706205 * 0.01
    assert float(rows[2]["share"]) == pytest.approx(0.61)
    assert float(rows[2]["share_low"]) == pytest.approx(0.61 - 0.12706205, rel=1e-6)
    assert rows[2]["seeds"] == "2"
    assert (report / "figures" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (report / "tables" / "curve.md").is_file() and (report / "tables" / "curve.tex").is_file()


def test_its_caption_names_what_is_not_on_the_axes(report):
    page = (report / "report.md").read_text()
    assert "against num_pairs; bars: 95% intervals over seeds; shares below -50% are not shown" in page
    assert "no number, so not on the axis: dpo num_pairs=None" in page


def test_several_swept_settings_have_a_figure_each(tmp_path):
    runs = [
        write_exact(
            tmp_path,
            f"{need}{lr}{beta}",
            method="dpo",
            share=0.5 + lr / 10,
            config={"method": {"lr": lr, "loss": {"beta": beta}}},
            history=[],
        )
        for need in ("dpo",)
        for lr in (1, 2, 3)
        for beta in (0.1, 0.2, 0.3)
    ]
    build_report(tmp_path / "table", {"dpo": runs}, title="t", next_commands=[], baseline=None)
    found = {path.name for path in (tmp_path / "table" / "report").rglob("curve*")}
    assert found == {f"curve-{name}.{end}" for name in ("lr", "beta") for end in ("csv", "json", "md", "tex", "png")}


@pytest.fixture
def axes(tmp_path, monkeypatch):
    """Draws panels and returns their axes as matplotlib has them."""
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))

    def draw(*panels, families):
        draw_panels(panels, tmp_path / "x.png", colours=dict.fromkeys(families, "#0072B2"))
        return drawn[-1].axes

    return draw


def test_wide_axes_are_logarithmic_and_seeds_of_a_row_are_named_once(axes):
    lines = [Line("dpo", "dpo", [(1, 10 * seed), (100, 20.0 + seed)]) for seed in range(3)]
    axis = axes(Panel(lines, "pairs", "share", log_x=True, level=100.0, floor=-50.0), families=["dpo"])[0]
    assert axis.get_xscale() == "log" and axis.get_yscale() == "linear"
    assert [text.get_text() for text in axis.texts] == ["dpo"]
    assert len(axis.lines) == 1 + 3  # the level, and a line per seed
    assert list(axis.lines[2].get_ydata()) == [10, 21.0]


def test_values_below_the_floor_are_cut_and_values_above_it_keep_their_own_limits(axes):
    low = axes(Panel([Line("a", "a", [(0, -300), (1, 50)])], "x", "y", floor=-50.0), families=["a"])[0]
    near = axes(Panel([Line("a", "a", [(0, 10), (1, 50)])], "x", "y", floor=-50.0), families=["a"])[0]
    assert low.get_ylim()[0] == -50.0
    assert near.get_ylim()[0] > -50.0


def test_too_many_names_become_those_of_the_families(axes):
    lines = [Line(f"dpo lr={i}", "dpo", [(0, i), (1, i)]) for i in range(25)]
    axis = axes(Panel(lines, "x", "y"), families=["dpo"])[0]
    assert [text.get_text() for text in axis.texts] == ["dpo"]


def test_points_without_a_place_are_dropped():
    points = [(0.0, 1.0), (1.0, 0.0), (2.0, float("nan")), (3.0, 4.0)]
    assert drawable(points, log_x=False, log_y=False) == [(0.0, 1.0), (1.0, 0.0), (3.0, 4.0)]
    assert drawable(points, log_x=True, log_y=True) == [(3.0, 4.0)]


def test_names_are_spread_as_little_as_possible():
    assert spread([0.2, 0.8], 0.1) == pytest.approx([0.2, 0.8])
    # two at one height part evenly; the third stays
    assert spread([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.45, 0.55, 0.9])
    # at the top there is room downwards only
    assert spread([0.1, 1.0, 1.0], 0.1) == pytest.approx([0.1, 0.9, 1.0])
    assert spread([], 0.1) == []
