"""What a seeded bug is, where it stands, and which code its result belongs to."""

import ast
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path("src/alignlab")
CONTRACTS = "contracts/test_every_loss.py::test_every_loss_keeps_its_contracts"


class Mutant(NamedTuple):
    """One change of text that makes the package wrong."""

    bug: str  # what it would be called; unique
    file: str  # below src/alignlab
    old: str  # occurs in the file exactly once
    new: str
    tests: tuple[str, ...]  # what ought to fail: files or tests below tests/, the quickest first

    @property
    def path(self) -> Path:
        """The file from the top of the checkout."""
        return PACKAGE / self.file

    @property
    def room(self) -> str:
        """The part of the package that it is in."""
        return self.file.partition("/")[0].removesuffix(".py")

    def applied(self, source: str) -> str:
        """`source` with the bug in it. ValueError unless `old` is there exactly once."""
        if (times := source.count(self.old)) != 1:
            raise ValueError(f"{self.path}: {self.bug!r} replaces a text that occurs {times} times: {self.old!r}")
        return source.replace(self.old, self.new)

    def where(self, root: Path) -> str:
        """`kernels/logprobs.py: shift_labels`"""
        return f"{self.file}: {_name(self._place(root))}"

    def digest(self, root: Path, caught_by: str) -> str:
        """12 hex digits over the mutated function, the change, and the test function that caught it.

        Comments, docstrings and everything else in the two files are left out: what they say changes no result.
        """
        file, _, test = caught_by.partition("::")
        tested = function_named((root / "tests" / file).read_text(), test.partition("[")[0])
        mutated = _code((root / self.path).read_text(), self._place(root)[-1])
        return hashlib.sha256("\0".join((mutated, self.old, self.new, tested)).encode()).hexdigest()[:12]

    def _place(self, root: Path) -> list[ast.stmt]:
        """The definitions around the change, from the outside to the innermost statement that is not in a function."""
        source = (root / self.path).read_text()
        self.applied(source)
        first = source[: source.index(self.old)].count("\n") + 1
        last = first + self.old.rstrip("\n").count("\n")
        place: list[ast.stmt] = []
        inside: list[ast.stmt] = _parsed(source).body
        while found := [node for node in inside if _first_line(node) <= first and last <= (node.end_lineno or 0)]:
            place.append(found[0])
            inside = found[0].body if isinstance(found[0], ast.ClassDef) else []
        if not place:
            raise ValueError(f"{self.path}: {self.bug!r} changes more than one definition")
        return place


def contract(option: str) -> str:
    """The test that a loss of conf/ keeps its contracts, by its option: `method/loss=dpo`."""
    return f"{CONTRACTS}[{option}]"


def function_named(source: str, name: str) -> str:
    """The code of a function of a module. KeyError where there is none."""
    functions = {node.name: node for node in _parsed(source).body if isinstance(node, ast.FunctionDef)}
    return _code(source, functions[name])


@lru_cache(maxsize=128)
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


def _code(source: str, node: ast.stmt) -> str:
    """The lines of a statement without docstring, comments of their own, blank lines and indentation."""
    skipped: set[int] = set()
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
        docstring = node.body[0]
        skipped = set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    numbered = enumerate(source.splitlines()[_first_line(node) - 1 : node.end_lineno], start=_first_line(node))
    lines = [line.strip() for number, line in numbered if number not in skipped]
    return "\n".join(line for line in lines if line and not line.startswith("#"))


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min(part.lineno for part in (node, *decorators))


def _name(place: list[ast.stmt]) -> str:
    return ".".join(_names(node) for node in place)


def _names(node: ast.stmt) -> str:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", node)
    return target.id if isinstance(target, ast.Name) else f"line {node.lineno}"
