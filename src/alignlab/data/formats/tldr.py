"""TL;DR summaries of Reddit posts (Stiennon et al. 2020), in the shapes they are published in.

Comparisons: {prompt, chosen, rejected}, or the official {info, summaries, choice}. Demonstrations: {prompt,
completion} or {prompt, label}, or {subreddit, title, post, summary}. A prompt ends with "TL;DR:"; a summary that stands
alone in its field gets the space that follows.
"""

from collections.abc import Mapping, Sequence

from alignlab.data import dialogue
from alignlab.data.checks import check_reply, show
from alignlab.data.formats import fields
from alignlab.data.formats.fields import Record
from alignlab.errors import DataError
from alignlab.rows import Message, PreferenceRow, Prompt, SFTRow


def comparison(record: Record) -> PreferenceRow:
    """Two summaries of one post."""
    if "summaries" not in record:
        return PreferenceRow(
            fields.text(record, "prompt"), fields.reply(record, "chosen"), fields.reply(record, "rejected")
        )
    info, summaries, choice = (fields.get(record, name) for name in ("info", "summaries", "choice"))
    if not isinstance(info, Mapping):
        raise DataError(f"field 'info': got {show(info)}, expected an object with subreddit, title and post")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(s, Mapping) for s in summaries):
        raise DataError(f"field 'summaries': got {show(summaries)}, expected a list of two objects")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise DataError(f"field 'choice': got {show(choice)}, expected 0 or 1")
    texts = [" " + fields.reply(s, "text").strip() for s in summaries]
    return PreferenceRow(_prompt(info), texts[choice], texts[1 - choice])


def demonstration(record: Record) -> SFTRow:
    """One post and its summary."""
    if "prompt" in record:
        field = "completion" if "completion" in record else "label"
        return SFTRow(fields.text(record, "prompt"), " " + fields.reply(record, field).strip())
    return SFTRow(_prompt(record), " " + check_reply(fields.get(record, "summary"), "summary").strip())


def prompt_of(turns: Sequence[Message]) -> Prompt:
    """The last message as a post without subreddit and title, and the cue to sum it up."""
    return dialogue.framed("POST: {message}\n\nTL;DR:", turns)


def _prompt(post: Record) -> str:
    subreddit, title, body = (fields.text(post, name) for name in ("subreddit", "title", "post"))
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {body}\n\nTL;DR:"
