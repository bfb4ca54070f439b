"""`build_report`: run folders in, a folder with report.md, report.html, tables/ and figures/ out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from alignlab.errors import DataError
from alignlab.report import contents, figures, tables
from alignlab.report.collect import EXACT
from alignlab.report.document import Block, Commands, Heading, Listing, Paragraph, Picture, write_document
from alignlab.report.hacking import find_warnings
from alignlab.report.leaderboard import leaderboard_blocks, with_plain_names
from alignlab.report.ordering import ordering_blocks
from alignlab.report.phases import phase_blocks
from alignlab.report.reward import reward_tables
from alignlab.report.scores import score_blocks
from alignlab.report.summary import Row, summarise
from alignlab.report.tables import write_table

HEADLINES = (
    *("gold_reward", "gold_reward_low", "gold_reward_high", "proxy_reward", "kl", "win_rate", "response_length"),
    *("rouge_l", "distinct_2", "perplexity_reference", "eos_rate", "quality_rate"),
    *("accuracy", "accuracy_low", "accuracy_high"),
    *(f"{EXACT}{name}" for name in ("share", "share_low", "share_high", "regret", "ipo_share", "likelihood_gap")),
)
RULES = (
    "None of the rules fired: proxy reward above and gold reward below another policy's; or, with the reward above the "
    "baseline's, a KL above 1 nat a token, distinct-2 below half of the baseline's, a repetition rate 0.1 above it, or "
    "a quality rate 0.1 below it. Read the replies all the same."
)


def build_report(
    folder: Path,
    runs: Mapping[str, Sequence[Path]],
    *,
    title: str,
    next_commands: Sequence[str],
    baseline: str | None,
    ordering: Sequence[str] = (),
    ordering_by: str = "gold_reward",
) -> dict[str, float]:
    """Writes folder/report/ from finished run folders and returns the headline figures, `<row>/<figure>`.

    Args:
        runs: need (base, sft, reward, dpo, ...) -> folders of evaluations, of trained reward models, or of trainings
            in an exact world. Folders of one need that differ in nothing but the seed become one row.
        baseline: the need that win rates and warnings compare with; None for neither.
        next_commands: what the reader may type next.
        ordering: needs (or row labels), the best first, that are claimed to stand in this order by `ordering_by`.

    Raises:
        DataError: no runs at all, `baseline` is no need, or a folder that is not a finished run.
    """
    if not any(runs.values()):
        raise DataError(f"{folder}: a report needs at least one run folder, none came")
    if baseline is not None and baseline not in runs:
        raise DataError(f"{folder}: baseline={baseline} is none of the needs; they are {', '.join(runs)}")
    rows = summarise(runs, baseline=baseline)
    rewards = [row for row in rows if row.records[0].is_reward_model]
    policies = [row for row in rows if not row.records[0].is_reward_model]
    sampled = [row for row in policies if row.records[0].is_sampled]
    warnings = find_warnings(sampled, baseline=baseline)
    colours = figures.assign_colours([row.need for row in rows])
    out = folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    claim, claimed = ordering_blocks(rows, ordering, ordering_by, out)
    leaderboard = leaderboard_blocks(policies, out, colours=colours)
    blocks = [
        *_summary_blocks(policies, sampled, out, baseline=baseline, warnings=warnings, colours=colours),
        *claim,
        *score_blocks(sampled, out, colours=colours),
        *leaderboard,
        *_reward_blocks(rewards, out, colours=colours),
        *_training_blocks([row for row in rows if row in sampled or row in rewards], sampled, out, colours=colours),
        *phase_blocks(rows, out),
        *_ending_blocks(rows, next_commands),
    ]
    about = {"next_commands": list(next_commands), "warnings": warnings}
    if leaderboard:
        about |= {"summary": bool(sampled), "leaderboard": True}
    write_document(out, title, blocks, about)
    return claimed | {
        f"{row.label}/{name.removeprefix(EXACT)}": row.values[name]
        for row in rows
        for name in HEADLINES
        if name in row.values
    }


def _summary_blocks(
    policies: Sequence[Row],
    sampled: Sequence[Row],
    out: Path,
    *,
    baseline: str | None,
    warnings: Mapping[str, Sequence[str]],
    colours: Mapping[str, str],
) -> list[Block]:
    """The table of policies, the frontier, and what looks wrong; of those whose replies were sampled.

    The CSV has all policies.
    """
    note = contents.policy_note(sampled, baseline=baseline)
    table = tables.text_table(sampled, tables.POLICY_COLUMNS, first="policy", note=note)
    write_table(out, "summary", table, tables.to_csv(policies, tables.POLICY_CSV, first="policy"))
    if not sampled:
        return []
    blocks: list[Block] = [Heading("Summary")]
    sentences = contents.headline(sampled, baseline=baseline, flagged=warnings)
    blocks += [Listing(tuple(sentences))] if sentences else []
    blocks.append(table)
    points = contents.frontier_points(sampled, flagged=warnings)
    if points:
        path = out / "figures" / "frontier.png"
        figures.reward_kl_frontier(points, path, colours=colours)
        sweep = len({point.family for point in points}) < len(points)
        caption = "Reward against KL; bars: 95% intervals" + ("; lines join the settings of one sweep" if sweep else "")
        left_out = [f"{row.label} at {row.values['kl']:.0f} nats" for row in contents.off_the_scale(sampled)]
        caption += f"; off the scale: {', '.join(left_out)}" if left_out else ""
        blocks.append(Picture(path, caption + ("; red rings: suspects, see below." if warnings else ".")))
    blocks.append(Heading("Signs of over-optimisation"))
    if not warnings:
        blocks.append(Paragraph(RULES))
    else:
        blocks.append(Listing(tuple(f"{label}: {'; '.join(found)}" for label, found in warnings.items())))
    return blocks


def _reward_blocks(rewards: Sequence[Row], out: Path, *, colours: Mapping[str, str]) -> list[Block]:
    """The table of reward models and their plot."""
    if not rewards:
        return []
    note = contents.reward_note(rewards)
    shown = [with_plain_names(row) for row in rewards]
    table = tables.text_table(shown, tables.REWARD_COLUMNS, first="reward model", note=note)
    exact = any(row.records[0].exact is not None for row in rewards)
    names = (*tables.REWARD_CSV, *(tables.REWARD_EXACT_CSV if exact else ()))
    write_table(out, "reward", table, tables.to_csv(shown, names, first="reward_model"))
    blocks: list[Block] = [Heading("Reward models"), table]
    plots = contents.reward_model_plots(rewards)
    if plots:
        path = out / "figures" / "reward_model.png"
        figures.reward_model_quality(plots, path, colours=colours)
        blocks.append(
            Picture(path, "Held-out accuracy, margins and calibration; dots on the dashed diagonal are calibrated.")
        )
    return blocks + reward_tables({row.label: contents.reward_content(row) for row in rewards}, out)


def _training_blocks(
    rows: Sequence[Row], policies: Sequence[Row], out: Path, *, colours: Mapping[str, str]
) -> list[Block]:
    """Curves over training, reply lengths, replies side by side."""
    blocks: list[Block] = []
    curves = contents.training_curves(rows)
    if curves:
        path = out / "figures" / "curves.png"
        figures.reward_curves(curves, path, colours=colours)
        caption = "Training curves of each row's first run; faint: as logged, strong: running mean over a twentieth."
        blocks += [Heading("Training"), Picture(path, caption)]
    lengths = contents.reply_lengths(policies)
    if lengths:
        path = out / "figures" / "lengths.png"
        figures.length_histogram(lengths, path, colours=colours)
        blocks += [
            Heading("Reply lengths"),
            Picture(path, "Share of replies by length, on one scale for all policies."),
        ]
    replies = contents.side_by_side(policies)
    if replies:
        blocks += [
            Heading("Replies side by side"),
            Paragraph("The first held-out prompts, not chosen by hand."),
            *replies,
        ]
    return blocks


def _ending_blocks(rows: Sequence[Row], next_commands: Sequence[str]) -> list[Block]:
    """Where everything lies and what to type next."""
    folders = []
    for row in rows:
        for record in row.records:
            of = f", of {record.trained.name}" if record.trained else ""
            seed = "" if record.seed is None else f" (seed {record.seed})"
            folders.append(f"{row.label}{seed}: {record.name}{of}")
    blocks: list[Block] = [Heading("Run folders"), Listing(tuple(folders))]
    if next_commands:
        blocks += [Heading("Next"), Commands(tuple(next_commands))]
    return blocks
