"""What was typed, checked against what there is: Hydra itself stops at the first fault and suggests no other word."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from alignlab.app.configs.compose import Composer, lay
from alignlab.app.configs.content import child, raw_at
from alignlab.app.configs.nearest import hint
from alignlab.app.configs.schema import Need
from alignlab.app.configs.signature import signature
from alignlab.app.configs.source import Sources
from alignlab.errors import ConfigError

_NEED_FIELDS = tuple(Need.__dataclass_fields__)


class Typed(NamedTuple):
    """What is wrong with a list of overrides, a line each, and the ones to look at further without the wrong ones."""

    faults: list[str]
    right: tuple[str, ...] | None  # None: a choice is wrong, so the rest would be judged by the wrong options


def check_typed(composer: Composer, sources: Sources, overrides: Sequence[str]) -> Typed:
    """Unknown groups, options and keys, and values that the schema's types refuse: all of them."""
    parsed, faults = _parsed(composer, overrides)
    wrong = [text for text in overrides if text not in [o.input_line for o in parsed]]
    choices = [o for o in parsed if composer.is_choice(o)]
    wrong_groups = []
    for override in choices:
        found = _choice_faults(composer, override)
        faults += found
        wrong_groups += [override.key_or_group.replace("/", ".")] if found else []
    try:
        kept = [str(o.input_line) for o in choices if o.key_or_group.replace("/", ".") not in wrong_groups]
        cfg = composer.choose(kept).cfg.copy()
    except ConfigError as error:
        return Typed([*faults, str(error)], None)
    for override in parsed:
        if override in choices or "experiments" in wrong_groups or _is_below(override.key_or_group, wrong_groups):
            continue
        found = _key_fault(composer, sources, cfg, override)
        if found is None:
            try:
                lay(override, cfg)
            except ConfigError as error:
                found = str(error)
        if found is not None:
            faults.append(found)
            wrong.append(str(override.input_line))
    return Typed(faults, None if wrong_groups else tuple(text for text in overrides if text not in wrong))


def _is_below(path: str, groups: Sequence[str]) -> bool:
    return any(path.startswith(group + ".") for group in groups)


def _parsed(composer: Composer, overrides: Sequence[str]) -> tuple[list[Override], list[str]]:
    parsed, faults = [], []
    for text in overrides:
        try:
            override = composer.parse(text)
        except ConfigError as error:
            faults.append(str(error))
            continue
        if override.is_sweep_override():
            as_list = f"{override.get_key_element()}=[...]"
            faults.append(f"{text}: several values are a sweep, which needs -m; a list is written {as_list}")
        else:
            parsed.append(override)
    return parsed, faults


def _choice_faults(composer: Composer, override: Override) -> list[str]:
    """A group that is not there, or an option that it does not have."""
    group = override.key_or_group
    options = composer.options(group)
    if not options:
        return [f"{group}: there is no such group{hint(group, composer.groups())}"]
    value = override.value()
    wanted = value if isinstance(value, list) else [value]
    what = f"{group} has"
    return [
        f"{group}={option}: there is no such {'experiment' if group == 'experiments' else 'option'}"
        f"{hint(str(option), options, what=what)}"
        for option in wanted
        if option is not None and str(option) not in options
    ]


def _key_fault(composer: Composer, sources: Sources, cfg: DictConfig, override: Override) -> str | None:
    """Why a key cannot be set, or None. `+` may add what a `_target_` takes, not what nobody reads."""
    path = override.key_or_group
    node: Any = cfg
    parts = path.split(".")
    for depth, part in enumerate(parts):
        above = ".".join(parts[:depth])
        if _is_free(above):
            return _need_fault(cfg, parts)
        below = (
            node[int(part)]
            if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node)
            else child(node, part)
        )
        if below is None:
            return _unknown(composer, sources, cfg, override, above, part)
        node = below
    return None


def _unknown(
    composer: Composer, sources: Sources, cfg: DictConfig, override: Override, above: str, part: str
) -> str | None:
    path = override.key_or_group
    node = OmegaConf.select(cfg, above) if above else cfg
    if not above:
        names = [*(str(key) for key in cfg), *composer.groups()]
        return f"{path}: there is no such setting or group{hint(part, names, what='there are')}"
    target = node.get("_target_") if isinstance(node, DictConfig) and not node._is_none() else None
    adds = override.is_add() or override.is_force_add()
    if target:
        known = signature(sources, target)
        short = str(target).rpartition(".")[2]
        if adds and (known is None or known.loose or part in known.parameters):
            return None
        if known is not None and part in known.parameters:
            return f"{path}: {short} takes it, but its yaml does not list it: type +{override.input_line}"
        names = [*(known.parameters if known else ()), *_names(node)]
        other = _option_that_has(composer, path) or hint(part, set(names), what="it has")
        return f"{path}: {short} has no such setting{other}"
    if adds and (_inside_target(cfg, above) or (isinstance(node, DictConfig) and len(node) == 0)):
        return None
    return f"{path}: there is no such setting{hint(part, _names(node), what=f'{above} has')}"


def _option_that_has(composer: Composer, path: str) -> str:
    """`adapter.rank` with adapter=none: the options of the group that do have it."""
    group = path.partition(".")[0]
    having = []
    for option in composer.options(group):
        try:
            there, _ = raw_at(composer.choose([f"{group}={option}"]).cfg, path)
        except ConfigError:
            continue
        having += [f"{group}={option}"] if there else []
    return f"; {' and '.join(having)} {'has' if len(having) == 1 else 'have'} it" if having else ""


def _need_fault(cfg: DictConfig, parts: list[str]) -> str | None:
    """needs.<name>.<field>...: the name must be one that this target has, the field one of a need's."""
    at = parts.index("needs") + 1
    prefix = ".".join(parts[:at])
    needs = OmegaConf.select(cfg, prefix) or {}
    name, rest = parts[at], parts[at + 1 :]
    if rest and rest[0] not in _NEED_FIELDS:
        return f"{'.'.join(parts)}: a need has no {rest[0]}{hint(rest[0], _NEED_FIELDS, what='it has')}"
    if rest and name not in needs:
        return f"{'.'.join(parts)}: this target needs no {name}{hint(name, map(str, needs), what='it needs')}"
    return None


def _is_free(path: str) -> bool:
    """Nodes whose keys are names that a user makes up."""
    return path in ("needs", "evaluation.needs")


def _inside_target(cfg: DictConfig, path: str) -> bool:
    """Whether a node above is an argument of some `_target_`: its keys are that class's business."""
    parts = path.split(".")
    above = (OmegaConf.select(cfg, ".".join(parts[:depth])) for depth in range(1, len(parts)))
    return any(isinstance(node, DictConfig) and not node._is_none() and "_target_" in node for node in above)


def _names(node: Any) -> Iterable[str]:
    if not isinstance(node, DictConfig) or node._is_none():
        return []
    return [str(key) for key in node if not str(key).startswith("_")]
