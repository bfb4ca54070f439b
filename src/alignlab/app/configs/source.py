"""The source behind a dotted name, found and read without importing it.

The key of a run has a digest of its code: of the module that defines each `_target_`, and of what that module imports,
directly or not, within alignlab and the user's own package. A package's `__init__` counts only where it is imported by
name (`from alignlab.losses import X`), so an `__init__` that re-exports everything ties nothing together.
"""

import ast
import functools
import hashlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

from alignlab.app.configs.paths import Roots

OWN = "alignlab"


class Sources:
    """Finds modules, definitions and digests. What it has read is remembered for the life of the object."""

    def __init__(self, roots: Roots) -> None:
        self._python = roots.python
        self._files: dict[str, Path | None] = {}
        self._closures: dict[str, frozenset[str]] = {}

    def module_file(self, name: str) -> Path | None:
        """The .py file of a module, found by the import system's own finders, its parents not imported."""
        if name not in self._files:
            spec = _find(name)
            self._files[name] = Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
        return self._files[name]

    def tree(self, module: str) -> ast.Module | None:
        """The parsed module; None where there is no such module, or it is not Python source."""
        path = self.module_file(module)
        return _parse(path, path.stat().st_mtime_ns) if path else None

    def is_own(self, dotted: str) -> bool:
        """Whether a name belongs to alignlab or to a package in the user's folders: the code that keys are made of."""
        root = dotted.partition(".")[0]
        if root == OWN:
            return True
        spec = _find(root)
        if spec is None:
            return False
        if spec.submodule_search_locations is not None:
            homes = [Path(place).resolve().parent for place in spec.submodule_search_locations]
        else:
            homes = [Path(spec.origin).resolve().parent] if spec.origin and spec.origin.endswith(".py") else []
        return any(home in self._python for home in homes)

    def definition(self, dotted: str) -> tuple[str, ast.stmt] | None:
        """The module that really defines `a.b.C` and its node there, through any `from x import C` on the way."""
        module, _, name = dotted.rpartition(".")
        tree = self.tree(module) if module else None
        if tree is None:
            return None
        return self._in(module, tree, name, frozenset())

    def names(self, module: str) -> list[str]:
        """What a module defines or imports by name, for the nearest of them."""
        tree = self.tree(module)
        return [name for statement in _statements(tree) for name in _bound(statement)] if tree else []

    def digest(self, dotted: str) -> str | None:
        """Hash of the code that `dotted` (a class, a function or a module) runs; None outside of our own code."""
        if not self.is_own(dotted):
            return None
        found = self.definition(dotted)
        module = dotted if self.tree(dotted) is not None else found[0] if found else None
        if module is None:
            return None
        parts = [f"{name}:{self._module_digest(name)}" for name in sorted(self.closure(module))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def closure(self, module: str) -> frozenset[str]:
        """Modules of alignlab and of the module's own root package that `module` imports, itself included."""
        if module not in self._closures:
            roots, seen, todo = {OWN, module.partition(".")[0]}, set(), [module]
            while todo:
                name = todo.pop()
                if name not in seen and self.tree(name) is not None:
                    seen.add(name)
                    todo += [n for n in self._imports(name) if n.partition(".")[0] in roots]
            self._closures[module] = frozenset(seen)
        return self._closures[module]

    def _in(self, module: str, tree: ast.Module, name: str, seen: frozenset[str]) -> tuple[str, ast.stmt] | None:
        for statement in _statements(tree):
            if isinstance(statement, (ast.ClassDef, ast.FunctionDef)) and statement.name == name:
                return module, statement
            if isinstance(statement, (ast.Assign, ast.AnnAssign)) and name in _bound(statement):
                return module, statement
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    if (alias.asname or alias.name) != name:
                        continue
                    source = self._base(statement, module)
                    below = self.tree(source)
                    if below is not None and f"{source}.{alias.name}" not in seen:
                        return self._in(source, below, alias.name, seen | {f"{source}.{alias.name}"})
        return None

    def _imports(self, module: str) -> Iterator[str]:
        tree = self.tree(module)
        assert tree is not None
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._base(node, module)
                submodules = [f"{base}.{alias.name}" for alias in node.names]
                found = [name for name in submodules if self.module_file(name) is not None]
                yield from found
                if len(found) < len(
                    submodules
                ):  # a name of the module itself; else it is only the way to its submodules
                    yield base

    def _base(self, node: ast.ImportFrom, module: str) -> str:
        if not node.level:
            return node.module or ""
        path = self.module_file(module)
        package = module.split(".") if path is not None and path.name == "__init__.py" else module.split(".")[:-1]
        return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])

    def _module_digest(self, module: str) -> str:
        path = self.module_file(module)
        assert path is not None
        return _code_digest(path, path.stat().st_mtime_ns)


@functools.cache
def _parse(path: Path, _mtime_ns: int) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


@functools.cache
def _code_digest(path: Path, _mtime_ns: int) -> str:
    """Hash of the code alone: comments, docstrings and layout change no number."""
    raw = path.read_bytes()
    try:
        tree = ast.parse(raw)
    except SyntaxError:
        return hashlib.sha256(raw).hexdigest()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _find(name: str) -> ModuleSpec | None:
    path = None
    spec = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        spec = _ask_finders(".".join(parts[:depth]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and depth < len(parts):
            return None
    return spec


def _ask_finders(name: str, path: object) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find(name, path) if find else None
        if spec is not None:
            return spec
    return None


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Top-level statements, those under `if` and `try` too (`if TYPE_CHECKING:`)."""
    todo: list[ast.stmt] = list(tree.body)
    while todo:
        statement = todo.pop(0)
        if isinstance(statement, ast.If):
            todo = [*statement.body, *statement.orelse, *todo]
        elif isinstance(statement, ast.Try):
            handlers = [s for handler in statement.handlers for s in handler.body]
            todo = [*statement.body, *handlers, *statement.orelse, *todo]
        else:
            yield statement


def _bound(statement: ast.stmt) -> list[str]:
    """Names that a statement binds."""
    if isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
        return [statement.name]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name for alias in statement.names]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]
