"""What the report says beside its tables: data for the figures, replies side by side, and notes in words."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignlab.report.collect import is_number
from alignlab.report.document import Replies, Reply
from alignlab.report.figures import Curve, FrontierPoint, Lengths, RewardModelPlot
from alignlab.report.reward_seeds import Content, content_over_seeds
from alignlab.report.summary import Row
from alignlab.report.tables import shown

MOST_SIDE_BY_SIDE = 8
"""Policies in the length figure and in the replies: more do not fit beside each other."""

REWARD_PANELS = (
    ("Reward", ("train/score", "train/reward")),
    ("KL to the reference (nats)", ("train/kl",)),
    ("Margin between the two replies", ("train/margin", "validation/margin")),
    ("Accuracy on held-out pairs", ("validation/accuracy",)),
)
"""Panels of the curves, and the names in metrics.jsonl that may fill them: the first that a run has."""

OFF_THE_SCALE = 5.0
"""Times the largest KL of a trained policy: an untrained one beyond it is left out of the frontier, and named."""

LOSS_PANELS = (("Loss", ("train/loss",)),)
"""Drawn only where no run has any of the above: losses of different methods do not compare."""


def off_the_scale(rows: Sequence[Row]) -> list[Row]:
    """Untrained policies so far away that the trained ones could not be told apart beside them."""
    kls = [row.values["kl"] for row in rows if "kl" in row.values and not row.is_untrained]
    limit = OFF_THE_SCALE * max(kls, default=float("inf"))
    return [row for row in rows if row.is_untrained and row.values.get("kl", 0.0) > limit]


def frontier_points(rows: Sequence[Row], *, flagged: Mapping[str, Any]) -> list[FrontierPoint]:
    """Rows that have a KL and some reward; the proxy has no panel of its own where it *is* the gold reward."""
    far = off_the_scale(rows)
    rows = [row for row in rows if row not in far]
    names = ["gold_reward"]
    if any(
        "proxy_reward" in row.values and row.values["proxy_reward"] != row.values.get("gold_reward") for row in rows
    ):
        names.append("proxy_reward")
    points = []
    for row in rows:
        rewards = {name.replace("_", " "): _interval(row.values, name) for name in names if name in row.values}
        if "kl" in row.values and rewards:
            kl, low, high = _interval(row.values, "kl")
            points.append(FrontierPoint(row.label, row.need, kl, low, high, rewards, row.label in flagged))
    return points


def training_curves(rows: Sequence[Row]) -> list[Curve]:
    """Reward curves of every row's first run; of losses where there is none of a reward."""
    return _curves(rows, REWARD_PANELS) or _curves(rows, LOSS_PANELS)


def reply_lengths(rows: Sequence[Row]) -> list[Lengths]:
    """Lengths in tokens of all replies, of all seeds, for the first rows that have any."""
    found = []
    for row in rows:
        values = [sample["length"] for record in row.records for sample in record.samples if sample.get("length")]
        if values and len(found) < MOST_SIDE_BY_SIDE:
            found.append(Lengths(row.label, row.need, values))
    return found


def reward_content(row: Row) -> Content:
    """The held-out pairs of a reward model's row, all its seeds in one; {} where they were not evaluated."""
    return content_over_seeds([record.evaluations.get("reward", {}) for record in row.records])


def reward_model_plots(rows: Sequence[Row]) -> list[RewardModelPlot]:
    """Accuracy of each row; margins and calibration of the pairs of all its seeds, where they were saved."""
    plots = []
    for row in rows:
        content = reward_content(row)
        bins = [(each["confidence"], each["accuracy"], each["count"]) for each in content.get("calibration", [])]
        margins = [margin for margin in content.get("margins", []) if margin is not None]
        if "accuracy" in row.values:
            accuracy, low, high = _interval(row.values, "accuracy")
            plots.append(
                RewardModelPlot(row.label, row.need, accuracy, low, high, margins, [each for each in bins if each[2]])
            )
    return plots


def side_by_side(rows: Sequence[Row], *, num_prompts: int = 5) -> list[Replies]:
    """The first prompts that all policies (first runs, at most eight) answered, with a reply of each."""
    answers = {}
    for row in rows:
        samples = row.records[0].samples
        if samples and len(answers) < MOST_SIDE_BY_SIDE:
            # reversed: of several replies to one prompt, the first stays
            answers[row.label] = {_prompt_key(sample): sample for sample in reversed(samples)}
    if not answers:
        return []
    first = next(row for row in rows if row.label in answers).records[0].samples
    keys = [key for key in dict.fromkeys(map(_prompt_key, first)) if all(key in found for found in answers.values())]
    return [
        Replies(
            prompt_text(next(iter(answers.values()))[key]["prompt"]),
            tuple(Reply(label, _figures(found[key]), str(found[key]["response"])) for label, found in answers.items()),
        )
        for key in keys[:num_prompts]
    ]


def prompt_text(prompt: Any) -> str:
    """A prompt as a reader sees it: a dialogue has a line per turn."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def headline(rows: Sequence[Row], *, baseline: str | None, flagged: Mapping[str, Any]) -> list[str]:
    """One sentence per policy: its gold reward (the proxy's where nothing is gold), its KL, and where it stands to the
    baseline."""
    name = "gold_reward" if any("gold_reward" in row.values for row in rows) else "proxy_reward"
    base = next((row for row in rows if row.need == baseline and name in row.values), None)
    sentences = []
    for row in rows:
        if name not in row.values:
            continue
        mean, low, high = _interval(row.values, name)
        text = f"{row.label}: {name.replace('_', ' ')} {mean:.2f} [{low:.2f}, {high:.2f}]"
        if "kl" in row.values:
            text += f" at a KL of {row.values['kl']:.1f} nats"
        if base is not None and row is not base:
            _, base_low, base_high = _interval(base.values, name)
            place = "above" if low > base_high else "below" if high < base_low else "not apart from"
            text += f"; {place} {base.label}" + (" (intervals apart)" if place != "not apart from" else "'s interval")
        sentences.append(text + ("; suspect, see the signs of over-optimisation" if row.label in flagged else ""))
    return sentences


def policy_note(rows: Sequence[Row], *, baseline: str | None) -> str:
    """What the numbers of the policies' table are: denominators, intervals, sampling."""
    counts = sorted({int(row.values["num_prompts"]) for row in rows if "num_prompts" in row.values})
    number = " to ".join(str(each) for each in dict.fromkeys([*counts[:1], *counts[-1:]])) or "the"
    parts = [f"Means over {number} held-out prompts ({_sampling(rows)}); brackets: 95% interval"]
    if any(row.num_seeds == 1 for row in rows):
        parts.append("rewards: Student t over prompts")
        if any("win_rate" in row.values for row in rows):
            parts.append("win rate: Wilson over prompts")
    if any(row.num_seeds > 1 for row in rows):
        parts.append("rows of several seeds: mean of the seeds' means, Student t over seeds")
    if any("win_rate" in row.values for row in rows):
        parts.extend(_win_rates(rows, baseline))
    parts.append("KL: sampled estimate to the reference, nats per sequence")
    parts.append("perplexity: of the replies under the reference; length: tokens with the stop token")
    parts.append("EOS rate: share of replies that end by themselves")
    if any("pair_margin" in row.values for row in rows):
        parts.append(
            "held-out pairs: pair margin: log-prob of chosen - rejected, to be compared between rows; gained: of it, "
            "over the reference; pairs moved right: share that gained, ties half"
        )
    if any("quality_rate" in row.values for row in rows):
        parts.append("quality: share of replies that the quality filter accepts")
    return "; ".join(parts) + "."


def _win_rates(rows: Sequence[Row], baseline: str | None) -> Iterator[str]:
    """Whom the policies were compared with and who judged: as their evaluations say, else gold against the baseline."""
    told = {}
    for row in (row for row in rows if "win_rate" in row.values):
        by = row.records[0].evaluations.get("comparison")
        told[f"judged by {by['judge']} against {by['against']}" if by else f"gold reward above {baseline}'s"] = None
    yield from (f"win rate: {how}, on the same prompt, ties half" for how in told)


def reward_note(rows: Sequence[Row]) -> str:
    """What the numbers of the reward models' table are."""
    over = (
        "Student t over seeds"
        if any(row.num_seeds > 1 for row in rows)
        else "accuracy Wilson, margin Student t, over pairs (over prompts where pairs share one)"
    )
    exact = (
        "; likelihood gap: what the likelihood of all pairs of an exact world lacks, nats a pair; "
        "share of optimum: of the policy that is best for this reward model"
    )
    return (
        f"Held-out pairs, ties half; brackets: 95% interval ({over}); margin: raw score of chosen - rejected; "
        "calibration error: mean |share right - confidence| over bins of confidence sigmoid(|margin|); "
        f"loss: mean -log sigmoid(margin){exact if any(row.records[0].exact is not None for row in rows) else ''}."
    )


def _sampling(rows: Sequence[Row]) -> str:
    """How the replies were drawn, where all evaluations agree."""
    settings = [record.evaluations.get("policy", {}).get("settings", {}) for row in rows for record in row.records]
    told = {(each.get("samples_per_prompt"), each.get("temperature"), each.get("max_new_tokens")) for each in settings}
    if len(told) != 1 or None in next(iter(told)):
        return "sampling differs between rows" if len(told) > 1 else "sampling as in the evaluations' configs"
    samples, temperature, tokens = told.pop()
    return (
        f"{samples} {'reply' if samples == 1 else 'replies'} each, temperature {temperature:g}, at most {tokens} tokens"
    )


def _curves(rows: Sequence[Row], panels: Sequence[tuple[str, Sequence[str]]]) -> list[Curve]:
    curves = []
    for panel, names in panels:
        for row in rows:
            history = row.records[0].history
            found = [[(line["step"], line[name]) for line in history if is_number(line.get(name))] for name in names]
            points = next((each for each in found if each), [])
            if points:
                curves.append(
                    Curve(row.label, row.need, panel, [step for step, _ in points], [value for _, value in points])
                )
    return curves


def _interval(values: Mapping[str, float], name: str) -> tuple[float, float, float]:
    """Mean, low, high; the mean three times where there is no interval."""
    mean = values[name]
    return mean, values.get(f"{name}_low", mean), values.get(f"{name}_high", mean)


def _figures(sample: Mapping[str, Any]) -> str:
    kind = "gold" if sample.get("gold_reward") is not None or sample.get("proxy_reward") is None else "proxy"
    reward, kl = shown(sample.get(f"{kind}_reward"), digits=2), shown(sample.get("kl"), digits=1)
    ending = "" if sample.get("complete", True) else ", cut"
    return f"{kind} {reward}, KL {kl}, {sample.get('length', '-')} tokens{ending}"


def _prompt_key(sample: Mapping[str, Any]) -> tuple[Any, str]:
    return sample.get("row"), json.dumps(sample["prompt"], sort_keys=True)
