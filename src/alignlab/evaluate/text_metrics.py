"""What replies look like, from their text alone: variety, repetition, overlap with a wanted reply.

A word here is a run of letters and digits, or one punctuation mark, in lower case: the same for every tokenizer, so
that policies of different families compare.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from alignlab.errors import DataError

MOST_IN_SELF_BLEU = 64
"""Replies that self-BLEU is taken over, evenly spaced: each is held to all others, so cost grows with the square."""

WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """The words of `text`, lower case, punctuation marks as words of their own."""
    return WORD.findall(text.lower())


def ngrams(text: str, size: int) -> list[tuple[str, ...]]:
    """All runs of `size` words of `text`, in order; none if it is shorter."""
    found = words(text)
    return [tuple(found[start : start + size]) for start in range(len(found) - size + 1)]


def distinct_n(texts: Sequence[str], size: int) -> float:
    """distinct-n: different n-grams of all texts over all their n-grams (Li et al. 2016, section 5.3); 0 if none.

    It falls as texts grow longer or more numerous: compare it on the same prompts and length limit only.
    """
    grams = [gram for text in texts for gram in ngrams(text, size)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition_rate(texts: Sequence[str], size: int = 4) -> float:
    """seq-rep-n: 1 - (different n-grams / n-grams) within a text, averaged over texts (Welleck et al. 2020, eq. 9).

    Texts shorter than `size` words repeat nothing and count as 0.
    """
    if not texts:
        return 0.0
    rates = []
    for text in texts:
        grams = ngrams(text, size)
        rates.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return sum(rates) / len(rates)


def self_bleu(texts: Sequence[str], *, most: int = MOST_IN_SELF_BLEU) -> float:
    """Self-BLEU-4 in [0, 1]: BLEU of each text with all others as references, averaged (Zhu et al. 2018, section 3.1).

    High where the texts are alike. At most `most` of them, evenly spaced in their order; compare it at the same number
    only, for it grows with the references. Zero counts are smoothed (method 1 of Chen & Cherry 2014); a text of fewer
    than four words is held to its n-grams up to its own length, and one without words counts 0 (it shares nothing,
    not even with another such: see `problem_empty`). NaN for fewer than two texts.
    """
    step = max(1, math.ceil(len(texts) / most))
    spoken = [words(text) for text in texts[::step]]
    if len(spoken) < 2:
        return math.nan
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu  # rouge-score brings nltk

    smooth = SmoothingFunction().method1
    scores: list[Any] = [
        sentence_bleu(spoken[:at] + spoken[at + 1 :], text, smoothing_function=smooth, auto_reweigh=True)
        for at, text in enumerate(spoken)
    ]
    return math.fsum(map(float, scores)) / len(scores)


def variety(texts: Sequence[str]) -> dict[str, float]:
    """distinct_1 to distinct_3, repetition_rate, and self_bleu where there are two texts or more."""
    figures = {f"distinct_{size}": distinct_n(texts, size) for size in (1, 2, 3)}
    figures["repetition_rate"] = repetition_rate(texts)
    return figures | ({"self_bleu": self_bleu(texts)} if len(texts) > 1 else {})


def rouge(responses: Sequence[str], targets: Sequence[str]) -> dict[str, list[float]]:
    """rouge_1, rouge_2 and rouge_l: F1 of each response against its target (Lin 2004), stemmed, in [0, 1].

    Of shared words, of shared pairs of neighbouring words, and of the longest common subsequence of words. Words are
    those of Google's rouge-score, runs of a-z and 0-9: text of another script has none, and scores 0.

    Raises:
        DataError: the two are not of one length.
    """
    if len(responses) != len(targets):
        raise DataError(f"ROUGE needs a target for every response: {len(responses)} responses, {len(targets)} targets")
    from rouge_score.rouge_scorer import RougeScorer

    _forget_absl()
    kinds = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    scorer = RougeScorer(list(kinds.values()), use_stemmer=True)
    found = [scorer.score(target, response) for response, target in zip(responses, targets)]
    return {name: [scores[kind].fmeasure for scores in found] for name, kind in kinds.items()}


def _forget_absl() -> None:
    """Take absl's handler, which rouge-score brings, out of logging.

    When logging is set up anew (Hydra does it for each job) it would close the stream that it found at import, whoever
    else writes there.
    """
    import logging

    from absl import logging as absl_logging

    handler = absl_logging.get_absl_handler()
    logging.root.removeHandler(handler)
    known = getattr(logging, "_handlerList")  # noqa: B009 - what logging.config closes
    known[:] = [reference for reference in known if reference() not in (handler, handler.python_handler)]
