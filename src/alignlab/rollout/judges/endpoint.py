"""A chat model as a judge: asked twice about each pair, the second time with the replies swapped.

A model that is shown two replies favours a place (Wang et al. 2023, "Large Language Models are not Fair Evaluators").
As in MT-bench (Zheng et al. 2023, section 3.4) a reply wins only where it does so in both places; else it is a tie.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.errors import ConfigError
from alignlab.rollout.judges.chat_endpoint import ChatEndpoint
from alignlab.rollout.judges.verdict import FIRST, SECOND, TIE, Verdict
from alignlab.rows import Prompt
from alignlab.statistics import mean_interval, share_interval

FIELDS = ("prompt", "first", "second")
"""Places of the question, in braces; any other brace is text."""

VERDICTS = {"first": FIRST, "second": SECOND, "tie": TIE}
_FIELD = re.compile(r"\{(" + "|".join(FIELDS) + r")\}")


class EndpointJudge:
    """Asks an OpenAI-compatible server which of two replies is better.

    Args:
        question: what is asked, with {prompt}, {first} and {second} in it; or `question_path`, a file with it.
        verdicts: what the answer says for each of first, second and tie. Of several in one answer the last one counts.
        system: a system message before the question; None for none.
        api_key_env, request, timeout, retries, backoff, concurrency: see `ChatEndpoint`.

    Raises:
        ConfigError: a question without its fields, verdicts that are not three different words, or what
            `ChatEndpoint` refuses.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        question: str | None = None,
        question_path: str | None = None,
        verdicts: Mapping[str, str],
        system: str | None = None,
        api_key_env: str | None = None,
        request: Mapping[str, Any],
        timeout: float = 60.0,
        retries: int = 6,
        backoff: float = 1.0,
        concurrency: int = 8,
    ) -> None:
        self.question = _question(question, question_path)
        words = {name: str(word).strip().lower() for name, word in verdicts.items()}
        if set(words) != set(VERDICTS) or len(set(words.values())) < len(VERDICTS) or "" in words.values():
            raise ConfigError(f"evaluation.judge.verdicts={dict(verdicts)}: first, second and tie need a word each")
        self._value_of = {word: VERDICTS[name] for name, word in words.items()}
        longest_first = sorted(self._value_of, key=len, reverse=True)
        self._word = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)", re.IGNORECASE)
        self.system, self.model = system, model
        self.endpoint = ChatEndpoint(
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            request=request,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            concurrency=concurrency,
        )

    @property
    def name(self) -> str:
        """The model and where it is."""
        return f"{self.model} at {self.endpoint.url}"

    def remember(self, path: Path) -> None:
        """Keep the answers in this jsonl file; those in it are not asked for again."""
        self.endpoint.remember(path)

    def compare(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        """A verdict per prompt; two replies of the same text are a tie, about which nobody is asked.

        `why` holds `answers`, the two texts, and `orders`, what each says of the first reply (None: nothing that could
        be understood); `first` is shown first in the former. The verdict is None where one of the two is.

        Raises:
            EndpointError: the server cannot be asked.
        """
        asked = [i for i in range(len(prompts)) if first[i].strip() != second[i].strip()]
        questions = []
        for i in asked:
            questions.append(self.conversation(prompts[i], first[i], second[i]))
            questions.append(self.conversation(prompts[i], second[i], first[i]))
        answers = self.endpoint.answers(questions)
        found = [Verdict(TIE, {"identical": True})] * len(prompts)
        for place, i in enumerate(asked):
            found[i] = self._verdict(answers[2 * place], answers[2 * place + 1])
        return found

    def conversation(self, prompt: Prompt, first: str, second: str) -> list[dict[str, str]]:
        """The messages of one question."""
        texts = {"prompt": as_text(prompt), "first": first, "second": second}
        # In one pass: a reply that says {second} is left as it is.
        asked = _FIELD.sub(lambda match: texts[match[1]], self.question)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": asked}]

    def parse(self, answer: str) -> float | None:
        """What an answer says of the reply that was shown first: FIRST, SECOND, TIE, or None if it says nothing."""
        words = self._word.findall(answer)
        return self._value_of[words[-1].lower()] if words else None

    def figures(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """How far the judge can be trusted, over the pairs that it was asked about; empty if there are none.

        judge_unparsable: share of its answers that could not be understood. Over pairs with two answers:
        judge_consistency (+ _low, _high, Wilson), the share where both orders say the same. Over pairs with a winner in
        both orders: judge_first_share (+ _low, _high, Student's t over pairs), how often the winner was the reply shown
        first; 0.5 is no bias.
        """
        orders = [verdict.why["orders"] for verdict in verdicts if "orders" in verdict.why]
        if not orders:
            return {}
        said = [value for pair in orders for value in pair]
        figures = {"judge_unparsable": said.count(None) / len(said)}
        both = [pair for pair in orders if None not in pair]
        if both:
            agreeing = share_interval(sum(one == other for one, other in both), len(both))
            figures |= _with_interval("judge_consistency", agreeing)
        decided = [pair for pair in both if TIE not in pair]
        if decided:
            # shown first is `first` in one order and `second` in the other
            shares = mean_interval([(one + (1 - other)) / 2 for one, other in decided])
            figures |= _with_interval("judge_first_share", shares)
        return figures

    def _verdict(self, answer: str, swapped: str) -> Verdict:
        one, other = self.parse(answer), self.parse(swapped)
        other = None if other is None else 1 - other
        why = {"answers": [answer, swapped], "orders": [one, other]}
        if one is None or other is None:
            return Verdict(None, why)
        return Verdict(one if one == other else TIE, why)


def as_text(prompt: Prompt) -> str:
    """A prompt for a reader: text as it is, a single request alone, a dialogue with its roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _question(question: str | None, path: str | None) -> str:
    """The question, from the setting or the file, with its fields checked."""
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise ConfigError(f"evaluation.judge.question_path={path}: no such file")
        question = file.read_text(encoding="utf-8")
    if not question:
        raise ConfigError("evaluation.judge.question: nothing is asked; give it a text, or question_path a file")
    lacking = [name for name in FIELDS if name not in _FIELD.findall(question)]
    if lacking:
        raise ConfigError(f"evaluation.judge.question: {{{lacking[0]}}} does not stand in it")
    return question


def _with_interval(name: str, interval: Any) -> dict[str, float]:
    figures = {name: interval.mean}
    if interval.low == interval.low:  # a single pair has no t interval
        figures |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return figures
