"""What is plainly wrong with a reply, told from its text alone: no model, no reference, no language list.

A reply may be `empty`, a `repetition` (the same thing over and over), `gibberish` (no words in it), `broken` (template
markers or garbled encoding show) or `cut_off` (it did not end by itself). These are faults that no reader needs the
prompt to see; whether a reply is good is what rewards are for. The thresholds are set so that text written by people
passes: of Alpaca's, HH's and IMDB's texts below 1 % are flagged, so a rate far above that says something of the policy.
What is made of real words in no order passes too: only a model can tell it, by the perplexity under the reference.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alignlab.errors import ConfigError, DataError

PROBLEMS = ("empty", "repetition", "gibberish", "broken", "cut_off")
"""Names of all problems, in the order in which they are told."""

SHARES = ("loop_share", "repeated_share", "letter_share", "odd_share", "word_share")
"""Fields of `QualityFilter` that are shares."""

MANY_WORDS = 16
"""Words below which the rate of repeated 4-grams and the share of one word say nothing."""

_LETTERS = re.compile(r"[^\W\d_]+")
_WORD = re.compile(r"\w+")
_LATIN = re.compile(r"[a-z]+")
_LIST_MARK = re.compile(r"^\W*(?:\d+\W+)?")
_CONSONANTS = re.compile(r"[bcdfghjklmnpqrstvwxz]{6}")
_RARE = re.compile(  # letters that next to no word has side by side
    r"q[^u]|j[bcdfghklmnpqrstvwxz]|[cfghkmpqtvwxz]j|v[bcdfghjkmpqtwxz]|[bcfghjkmpqvwz]x|x[bdgjkrsvz]|[bfghjkmpvwx]q"
)
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_WALKS = {way[at : at + 4] for row in _ROWS for way in (row, row[::-1]) for at in range(len(row) - 3)}
_KEYBOARD = re.compile("|".join(sorted(_WALKS - {"wert", "erty", "trew", "ytre"})))  # there are "property", "strew"

_MARKERS = re.compile(
    r"<[|\uff5c][^|\uff5c<>\n]{1,40}[|\uff5c]>"  # <|im_start|>, <|eot_id|>, ...
    r"|</?s>|<(?:pad|unk|bos|eos|cls|sep|mask|extra_id_\d+|(?:start|end)_of_turn)>"
    r"|\[(?:/?INST|PAD|UNK|CLS|SEP|MASK|BOS|EOS)\]|<</?SYS>>"
    r"|^\s*#{2,3} (?:Instruction|Response|Input):"  # Alpaca
    r"|^\s*(?:Human|Assistant|USER|ASSISTANT):",  # HH, Vicuna: the reply goes on as the user
    re.MULTILINE,
)
# C1 (U+0080 to U+009F) is let pass: dashes and dots of Windows-1252 are there in much text of the web (3 % of IMDB).
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ue000-\uf8ff]")  # surrogates, private use
# Vocabulary entries that were never decoded: byte-level BPE, SentencePiece, WordPiece.
_TOKENIZER = re.compile(r"\w\u0120|\u0120\w+\s\u0120|\w\u010a|\u2581\w|<0x[0-9A-F]{2}>|\w ##\w")
# UTF-8 read as Latin-1 or Windows-1252: a lead byte and its continuation bytes, as these code pages show them.
_TAIL = "[\u0080-\u00bf" + bytes(set(range(0x80, 0xA0)) - {0x81, 0x8D, 0x8F, 0x90, 0x9D}).decode("cp1252") + "]"
_MOJIBAKE = re.compile(
    rf"[\u00c2\u00c3]{_TAIL}|(?:[\u00c2-\u00df]{_TAIL}){{2}}|[\u00e0-\u00ef]{_TAIL}{{2}}|[\u00f0-\u00f4]{_TAIL}{{3}}"
)


@dataclass(frozen=True)
class QualityFilter:
    """Finds what is wrong with a reply, and stands in for it.

    Args:
        loop_repeats: times in a row that a piece must be said to count as a loop; also for equal lines.
        loop_share: share of the reply that its loop, or its most frequent line, must take.
        longest_piece: words, or characters, of the longest piece that loops are looked for with.
        repeated_share: share of a reply's 4-grams of words said before in it (seq-rep-4 of Welleck et al. 2020).
        letter_share: letters and digits must be this share of what is not blank.
        odd_share: share of the letters that stand in words nobody can say (of four Latin letters or more: no vowel, six
            consonants in a row, four keys of the keyboard in a row, ...), at which a reply is gibberish.
        word_share: share of the words that are one and the same word, at which a reply is gibberish.
        faults: the problems that spoil a reply: it counts against `quality_rate`, and serving replaces it. Being cut
            off is none of them by default: it is a matter of the length limit, and `eos_rate` tells it.
        fallback: what serving shows in place of a spoilt reply.

    Raises:
        ConfigError: a share outside (0, 1], a count below 2, an unknown problem, or no fallback.
    """

    loop_repeats: int = 4
    loop_share: float = 0.25
    longest_piece: int = 64
    repeated_share: float = 0.5
    letter_share: float = 0.4
    odd_share: float = 0.3
    word_share: float = 0.6
    faults: Sequence[str] = ("empty", "repetition", "gibberish", "broken")
    fallback: str = "Sorry, I could not come up with a good answer to that. Could you put it in other words?"

    def __post_init__(self) -> None:
        for name in SHARES:
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"quality.{name}={getattr(self, name)}: a share above 0 and at most 1 is needed")
        for name in ("loop_repeats", "longest_piece"):
            if getattr(self, name) < 2:
                raise ConfigError(f"quality.{name}={getattr(self, name)} must be at least 2")
        unknown = [name for name in self.faults if name not in PROBLEMS]
        if unknown:
            raise ConfigError(f"quality.faults: there is no problem {unknown[0]!r}; they are {', '.join(PROBLEMS)}")
        if not self.fallback.strip():
            raise ConfigError("quality.fallback is empty: it stands in for empty replies too; give it words")

    def problems(self, response: str, *, complete: bool = True) -> tuple[str, ...]:
        """Names of what is wrong, in the order of `PROBLEMS`; none for a good reply. An empty reply is nothing else.

        `complete` tells whether the reply ended by itself, with its stop token.
        """
        if not _visible(response):
            found = {"empty"}
        else:
            tests = {"repetition": self._repeats, "gibberish": self._is_gibberish}
            found = {name for name, test in tests.items() if test(response)}
            found |= {"broken"} if _is_broken(response, complete=complete) else set()
        found |= set() if complete else {"cut_off"}
        return tuple(name for name in PROBLEMS if name in found)

    def accepts(self, response: str, *, complete: bool = True) -> bool:
        """Whether none of `faults` is found."""
        return not set(self.faults) & set(self.problems(response, complete=complete))

    def served(self, response: str, *, complete: bool = True) -> str:
        """The reply itself, or `fallback` where it is not accepted."""
        return response if self.accepts(response, complete=complete) else self.fallback

    def counts(self, responses: Sequence[str], *, complete: Sequence[bool] | None = None) -> dict[str, int]:
        """How many replies have each problem (one may have several), and how many are `accepted`.

        Raises:
            DataError: `complete` is not as long as `responses`.
        """
        ends = [True] * len(responses) if complete is None else complete
        if len(ends) != len(responses):
            raise DataError(f"quality: {len(responses)} replies, but {len(ends)} marks of which are complete")
        found = [self.problems(response, complete=end) for response, end in zip(responses, ends)]
        each = Counter(name for names in found for name in names)
        accepted = sum(not set(self.faults) & set(names) for names in found)
        return {**{name: each[name] for name in PROBLEMS}, "accepted": accepted}

    def _repeats(self, text: str) -> bool:
        """The same piece, line or 4-grams over and over."""
        spoken = [word for word in _WORD.findall(text.lower()) if word.strip("_")]
        if self._loops(spoken, least=8) or self._loops("".join(text.split()), least=24):
            return True
        lines = [_LIST_MARK.sub("", line.strip().lower()) for line in text.splitlines() if line.strip()]
        line, times = Counter(lines).most_common(1)[0]
        if times >= self.loop_repeats and times >= self.loop_share * len(lines) and len(_WORD.findall(line)) >= 2:
            return True
        grams = list(zip(spoken, spoken[1:], spoken[2:], spoken[3:]))
        return len(spoken) >= MANY_WORDS and 1 - len(set(grams)) / len(grams) >= self.repeated_share

    def _loops(self, units: Sequence[str], *, least: int) -> bool:
        """Whether a piece is said `loop_repeats` times in a row, over `loop_share` of all and `least` units or more."""
        number = {unit: index for index, unit in enumerate(dict.fromkeys(units))}
        numbers = np.array([number[unit] for unit in units])
        least = max(least, int(np.ceil(self.loop_share * len(numbers))))
        for period in range(1, min(self.longest_piece, len(numbers) // self.loop_repeats) + 1):
            covered = _longest_run(numbers[period:] == numbers[:-period]) + period
            if covered >= max(least, self.loop_repeats * period):
                return True
        return False

    def _is_gibberish(self, text: str) -> bool:
        """Mostly signs, words that are none, or one word alone."""
        visible = _visible(text)
        if sum(unicodedata.category(letter)[0] in "LMN" for letter in visible) < self.letter_share * len(visible):
            return True
        odd = sum(len(word) for word in _latin_words(text) if _is_odd(word))
        if odd >= 8 and odd >= self.odd_share * sum(letter.isalpha() for letter in visible):
            return True
        spoken = _WORD.findall(text.lower())
        return len(spoken) >= MANY_WORDS and Counter(spoken).most_common(1)[0][1] >= self.word_share * len(spoken)


def _visible(text: str) -> str:
    """Without blanks, control characters and characters of no width."""
    return "".join(
        letter for letter in text if not letter.isspace() and unicodedata.category(letter) not in ("Cc", "Cf")
    )


def _longest_run(flags: np.ndarray) -> int:
    """Length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def _latin_words(text: str) -> Iterator[str]:
    """Words of at least four letters that are all Latin, their accents taken off."""
    for word in _LETTERS.findall(text):
        plain = "".join(letter for letter in unicodedata.normalize("NFD", word) if not unicodedata.combining(letter))
        if len(plain) >= 4 and _LATIN.fullmatch(plain.lower()):
            yield plain


def _is_odd(word: str) -> bool:
    """Whether nobody can say a word, as far as its letters tell; abbreviations in capitals are left alone."""
    lower = word.lower()
    if _KEYBOARD.search(lower) or len(word) > 30:
        return True
    if word.isupper() and len(word) < 8:
        return False
    return not set(lower) & set("aeiouy") or bool(_CONSONANTS.search(lower) or _RARE.search(lower))


def _is_broken(text: str, *, complete: bool) -> bool:
    """Markers of a template or tokenizer, control characters, garbled encoding, or a code block that never ends."""
    if not complete:
        text = text.rstrip("\ufffd")  # byte-level tokens: the cut went through a character
    if "\ufffd" in text or _MARKERS.search(text) or _TOKENIZER.search(text) or _MOJIBAKE.search(text):
        return True
    if _CONTROL.search(text):
        return True
    return complete and text.count("```") % 2 == 1
