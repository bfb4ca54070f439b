"""A report as a list of blocks, written twice: as markdown beside its figures, and as one self-contained HTML page."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from alignlab.report.tables import TextTable, to_markdown, write_text


class Heading(NamedTuple):
    """A section's title."""

    text: str


class Paragraph(NamedTuple):
    """Plain words."""

    text: str


class Listing(NamedTuple):
    """A bullet list of plain words."""

    items: tuple[str, ...]


class Commands(NamedTuple):
    """Lines to type into a shell."""

    lines: tuple[str, ...]


class Picture(NamedTuple):
    """A PNG of the report's figures folder."""

    path: Path
    caption: str


class Reply(NamedTuple):
    """What one policy said to a prompt, and its figures in words."""

    label: str
    figures: str
    text: str


class Replies(NamedTuple):
    """The replies of several policies to one prompt, side by side."""

    prompt: str
    replies: tuple[Reply, ...]


Block = Heading | Paragraph | Listing | Commands | Picture | Replies | TextTable

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: #222; background: #fff; max-width: 66rem; margin: 2.5rem auto 4rem; padding: 0 1.25rem; }
h1 { font-size: 1.75rem; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; padding-top: .9rem; border-top: 1px solid #ddd; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .8rem; border-bottom: 1px solid #e5e5e5; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; font-weight: 600; }
th.word, td.word { text-align: left; }
.note, figcaption { color: #666; font-size: .86rem; max-width: 58rem; }
figure { margin: 1rem 0 1.6rem; }
img { max-width: 100%; height: auto; }
pre { background: #f5f5f2; padding: .8rem 1rem; overflow-x: auto; border-radius: 4px; font-size: .88rem; }
.prompt { font-weight: 600; white-space: pre-wrap; margin: 1.6rem 0 .5rem; }
.replies { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .8rem; }
.reply { border: 1px solid #e2e2e2; border-radius: 4px; padding: .6rem .8rem; }
.reply b { display: block; }
.reply small { color: #666; }
.reply p { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0 0; font-size: .92rem; }
"""


def write_document(out: Path, title: str, blocks: Sequence[Block], about: Mapping[str, Any], *, css: str = CSS) -> None:
    """Writes report.md, report.html and report.json (title and `about`, for the console) into `out`."""
    write_text(out / "report.md", to_document_markdown(title, blocks, folder=out))
    write_text(out / "report.html", to_document_html(title, blocks, css=css))
    write_text(out / "report.json", json.dumps({"title": title} | dict(about), indent=2, allow_nan=False) + "\n")


def to_document_markdown(title: str, blocks: Sequence[Block], *, folder: Path) -> str:
    """The report as GitHub markdown; pictures are linked relative to `folder`."""
    parts = [f"# {title}", *(_markdown(block, folder) for block in blocks)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def to_document_html(title: str, blocks: Sequence[Block], *, css: str = CSS) -> str:
    """The report as one HTML page: pictures inside, no script, nothing fetched."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{css}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Paragraph(text):
            return text
        case Listing(items):
            return "\n".join(f"- {item}" for item in items)
        case Commands(lines):
            return "\n".join(["```bash", *lines, "```"])
        case Picture(path, caption):
            return f"![{caption}]({path.relative_to(folder).as_posix()})\n\n*{caption}*"
        case Replies(prompt, replies):
            lines = [f"**{_inline(prompt)}**", "", "| policy | figures | reply |", "| --- | --- | --- |"]
            return "\n".join(
                [*lines, *(f"| {each.label} | {each.figures} | {_inline(each.text)} |" for each in replies)]
            )
        case TextTable():
            return to_markdown(block)


def _inline(text: str) -> str:
    """Text of a model made harmless inside a table cell: no markup of its own, line ends as <br>."""
    for letter in "\\`*_[]|#~":
        text = text.replace(letter, "\\" + letter)
    return escape(text.strip(), quote=False).replace("\n", "<br>")


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Listing(items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Commands(lines):
            return "<pre>" + escape("\n".join(lines)) + "</pre>"
        case Picture(path, caption):
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
        case Replies(prompt, replies):
            cards = "".join(
                f'<div class="reply"><b>{escape(each.label)}</b><small>{escape(each.figures)}</small>'
                f"<p>{escape(each.text.strip())}</p></div>"
                for each in replies
            )
            return f'<div class="prompt">{escape(prompt)}</div><div class="replies">{cards}</div>'
        case TextTable():
            return _html_table(block)


def _html_table(table: TextTable) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        words = ['<{0} class="word">{1}</{0}>', "<{0}>{1}</{0}>"]
        return "".join(words[not table.is_word(index)].format(tag, escape(cell)) for index, cell in enumerate(cells))

    rows = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in table.cells)
    head = f"<thead><tr>{line(table.headers, 'th')}</tr></thead>"
    body = f"<tbody>{rows}</tbody>"
    return f'<div class="scroll"><table>{head}{body}</table></div><p class="note">{escape(table.note)}</p>'
