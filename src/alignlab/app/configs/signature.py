"""Does a config node fit the class or function that its `_target_` names? Read from source, nothing is imported.

What cannot be told from source (a class whose constructor comes from a library, an annotation that is not simple) is
unknown and passes here; Python itself decides at build time.
"""

import ast
from dataclasses import dataclass
from typing import Any

from alignlab.app.configs.nearest import hint
from alignlab.app.configs.source import Sources

_LISTS = ("list", "List", "Sequence", "Iterable", "tuple", "Tuple", "Collection", "set", "frozenset")
_DICTS = ("dict", "Dict", "Mapping", "MutableMapping")
_SPECIAL = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
_SCALARS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "None": "null"}


@dataclass(frozen=True)
class Parameter:
    """One setting: whether it must be given, and its annotation (None: there is none)."""

    required: bool
    annotation: ast.expr | None


@dataclass(frozen=True)
class Signature:
    """Settings of a class or function by name; `loose` where it takes any (**kwargs)."""

    module: str
    parameters: dict[str, Parameter]
    loose: bool


def signature(sources: Sources, dotted: str) -> Signature | None:
    """The signature of `dotted`, or None where the source does not tell."""
    found = sources.definition(dotted)
    if found is None:
        return None
    module, node = found
    if isinstance(node, ast.FunctionDef):
        return _of_function(module, node, bound=False)
    if not isinstance(node, ast.ClassDef):
        return None
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        return _of_function(module, init, bound=True)
    bases = [_base_signature(sources, module, base) for base in node.bases]
    if _is_record(node):
        return _of_fields(module, node, [base for base in bases if base is not None])
    if not node.bases:
        return Signature(module, {}, False)
    return bases[0]


def bind(sources: Sources, dotted: str, node: dict[str, Any], at: str) -> list[str]:
    """Faults of a config node against the signature of its `_target_`, a line each; `at` is the node's path."""
    known = signature(sources, dotted)
    if known is None:
        return []
    short = dotted.rpartition(".")[2]
    given = [str(key) for key in node if key not in _SPECIAL]
    positional = list(known.parameters)[: len(node.get("_args_") or [])]
    faults = []
    for key in given:
        parameter = known.parameters.get(key)
        if parameter is not None:
            faults += check_type(sources, known.module, parameter.annotation, node[key], f"{at}.{key}")
        elif not known.loose:
            faults.append(f"{at}.{key}: {short} has no such setting{hint(key, known.parameters, what='it has')}")
    if not node.get("_partial_"):
        required = [name for name, parameter in known.parameters.items() if parameter.required]
        absent = [name for name in required if name not in given and name not in positional]
        faults += [f"{at}.{name}: {short} needs it, and it is not set" for name in absent]
    return faults


def check_type(sources: Sources, module: str, annotation: ast.expr | None, value: Any, at: str) -> list[str]:
    """A fault where a plain value cannot be what a simple annotation says; unknown annotations accept anything."""
    if annotation is None or value == "???" or (isinstance(value, dict) and "_target_" in value):
        return []
    allowed = _Annotation(sources, module)
    if allowed.accepts(annotation, value):
        return []
    return [f"{at}={_short(value)}: {_kind(value)}, but it must be {allowed.said(annotation)}"]


class _Annotation:
    """Reads an annotation of one module: what it accepts, and how to say so."""

    def __init__(self, sources: Sources, module: str) -> None:
        self._sources = sources
        self._module = module

    def accepts(self, node: ast.expr, value: Any) -> bool:
        node = self._plain(node)
        if (parts := self._alternatives(node)) is not None:
            return any(self.accepts(part, value) for part in parts)
        name, arguments = self._name(node), self._arguments(node)
        if name == "Literal":
            return any(
                isinstance(a, ast.Constant) and a.value == value and type(a.value) is type(value) for a in arguments
            )
        if name in _LISTS:
            items = [a for a in arguments if not (isinstance(a, ast.Constant) and a.value is ...)]
            if not isinstance(value, (list, tuple)):
                return False
            return len(items) != 1 or all(self.accepts(items[0], item) for item in value)
        if name in _DICTS:
            if not isinstance(value, dict):
                return False
            return len(arguments) != 2 or all(self.accepts(arguments[1], item) for item in value.values())
        if name in _SCALARS:
            return _is_scalar(name, value)
        return True

    def said(self, node: ast.expr) -> str:
        node = self._plain(node)
        if (parts := self._alternatives(node)) is not None:
            return " or ".join(dict.fromkeys(self.said(part) for part in parts))
        name, arguments = self._name(node), self._arguments(node)
        if name == "Literal":
            return " or ".join(str(a.value) for a in arguments if isinstance(a, ast.Constant))
        if name in _LISTS:
            return "a list" + (f" of {self.said(arguments[0])}" if arguments else "")
        if name in _DICTS:
            return "a mapping"
        return _SCALARS.get(name, ast.unparse(node))

    def _plain(self, node: ast.expr) -> ast.expr:
        """Text annotations parsed, aliases of the module (`Kind = Literal[...]`) followed."""
        for _ in range(4):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                try:
                    node = ast.parse(node.value, mode="eval").body
                except SyntaxError:
                    return ast.Name("Any")
            elif isinstance(node, ast.Name) and node.id not in (*_SCALARS, *_LISTS, *_DICTS):
                found = self._sources.definition(f"{self._module}.{node.id}")
                value = found[1].value if found and isinstance(found[1], (ast.Assign, ast.AnnAssign)) else None
                if value is None:
                    return node
                node = value
            else:
                return node
        return node

    def _alternatives(self, node: ast.expr) -> list[ast.expr] | None:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return [node.left, node.right]
        if isinstance(node, ast.Subscript) and self._name(node) == "Union":
            return self._arguments(node)
        if isinstance(node, ast.Subscript) and self._name(node) == "Optional":
            return [*self._arguments(node), ast.Constant(None)]
        return None

    def _name(self, node: ast.expr) -> str:
        if isinstance(node, ast.Subscript):
            node = node.value
        if isinstance(node, ast.Constant) and node.value is None:
            return "None"
        return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""

    def _arguments(self, node: ast.expr) -> list[ast.expr]:
        if not isinstance(node, ast.Subscript):
            return []
        return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _of_function(module: str, node: ast.FunctionDef, *, bound: bool) -> Signature:
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    first_default = len(positional) - len(args.defaults)
    parameters = {a.arg: Parameter(i < first_default, a.annotation) for i, a in enumerate(positional)}
    if bound and positional:
        del parameters[positional[0].arg]
    parameters |= {a.arg: Parameter(d is None, a.annotation) for a, d in zip(args.kwonlyargs, args.kw_defaults)}
    return Signature(module, parameters, args.kwarg is not None)


def _of_fields(module: str, node: ast.ClassDef, bases: list[Signature]) -> Signature:
    parameters = {name: parameter for base in reversed(bases) for name, parameter in base.parameters.items()}
    for field in node.body:
        match field:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                if "ClassVar" not in ast.unparse(annotation):
                    parameters[name] = Parameter(value is None, annotation)
    return Signature(module, parameters, False)


def _base_signature(sources: Sources, module: str, base: ast.expr) -> Signature | None:
    base = base.value if isinstance(base, ast.Subscript) else base
    name = ast.unparse(base)
    if name == "object":
        return Signature(module, {}, False)
    return signature(sources, f"{module}.{name}" if "." not in name else name)


def _is_record(node: ast.ClassDef) -> bool:
    decorated = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    return decorated or any(ast.unparse(base).endswith("NamedTuple") for base in node.bases)


def _is_scalar(name: str, value: Any) -> bool:
    if name == "None":
        return value is None
    if name == "bool":
        return isinstance(value, bool)
    if name == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, str)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "this is true or false"
    kinds = {
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a mapping",
        type(None): "null",
    }
    return f"this is {kinds.get(type(value), type(value).__name__)}"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
