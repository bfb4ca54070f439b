"""All faults of a plan, a line each, before anything is loaded or built."""

from typing import Any

from alignlab.app.configs.compose import Composer
from alignlab.app.configs.nearest import hint
from alignlab.app.configs.paths import Roots
from alignlab.app.configs.signature import bind
from alignlab.app.configs.source import Sources
from alignlab.app.planning.effects import has_effect
from alignlab.app.planning.targets import Planner, Target, plan

ALLOWED = ("torch.optim.",)
"""What a `_target_` may name besides alignlab and the user's own packages: no config may run just anything."""

KINDS = ("train", "evaluate", "sample", "table", "study")


def preflight(planner: Planner, asked: list[Target]) -> list[str]:
    """Faults of every target that is still to be built, and of what was typed for those asked for; each line once."""
    faults: dict[str, None] = {}
    wanted = {target.key for target in asked}
    for target in plan(asked):
        if target.faults or target.state != "done" or target.key in wanted:
            faults |= dict.fromkeys(target_faults(planner, target))
    for target in asked:
        for override in target.overrides:
            if not target.faults and not has_effect(planner, target, override):
                faults[f"{override}: it changes nothing here ({target.kind} {target.name} reads no such setting)"] = (
                    None
                )
    return list(faults)


def target_faults(planner: Planner, target: Target) -> list[str]:
    """Faults of one target's own config."""
    kind, wrong, missing = target.kind, target.plain.faults, target.plain.missing
    found = [
        *target.faults,
        *(f"{at}: {what}" for at, what in wrong.items() if at.startswith("needs") or _is_read(at, kind)),
    ]
    found += [_missing(planner.composer, target, at) for at in missing if _is_read(at, kind)]
    if target.kind not in KINDS:
        found.append(f"task.kind={target.kind}: a task is {', '.join(KINDS)}")
    for name in (target.content.get("task") or {}).get("source") or []:
        if planner.sources.tree(name) is None:
            found.append(f"task.source: there is no module {name}")
    found += _claimed(target)
    checked = dict(target.plain.node)
    if target.kind != "evaluate":
        checked.pop("evaluation", None)
    if target.kind in ("table", "study", "sample"):
        checked = {key: checked.get(key) for key in ("task", "hardware", "logger")}
    return found + _walk(planner, checked, "")


def _claimed(target: Target) -> list[str]:
    """Faults of a table's claim: found now, not when everything it collects has been built."""
    names = list((target.content.get("task") or {}).get("ordering") or [])
    strange = [name for name in names if str(name).split(" ")[0] not in target.needs]  # `ppo beta=0.1` is a row of ppo
    found = [f"task.ordering: {name} is none of the needs{hint(str(name), list(target.needs))}" for name in strange]
    return found + (["task.ordering: an ordering needs two names or more, the best first"] if len(names) == 1 else [])


def allowed(sources: Sources, roots: Roots, dotted: str) -> bool:
    """Whether a `_target_` may name this: alignlab, the user's own packages, and the few of ALLOWED."""
    return dotted.startswith(ALLOWED) or sources.is_own(dotted)


def _walk(planner: Planner, node: Any, at: str) -> list[str]:
    faults: list[str] = []
    if isinstance(node, dict):
        dotted = node.get("_target_")
        if dotted is not None:
            faults += _target_node(planner, str(dotted), node, at)
        for key, value in node.items():
            faults += _walk(planner, value, f"{at}.{key}" if at else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            faults += _walk(planner, value, f"{at}[{index}]")
    return faults


def _target_node(planner: Planner, dotted: str, node: dict[str, Any], at: str) -> list[str]:
    sources = planner.sources
    if not allowed(sources, planner.roots, dotted):
        where = "alignlab, torch.optim, and packages beside --config-dir or in the working directory"
        return [f"{at}._target_: {dotted} is refused: a config may name only {where}"]
    if sources.definition(dotted) is None:
        module, _, last = dotted.rpartition(".")
        if sources.tree(module) is None:
            return [f"{at}._target_: {dotted} cannot be found: there is no module {module}"]
        near = hint(last, sources.names(module), prefix=f"{module}.", what="it has")
        return [f"{at}._target_: {module} has no {last}{near}"]
    return bind(sources, dotted, node, at)


def _missing(composer: Composer, target: Target, at: str) -> str:
    group = at.replace(".", "/")
    options = composer.options(group)
    if options:
        owner, _, last = at.rpartition(".")
        who = f"{owner}={target.choices.get(owner.replace('.', '/'))}" if owner else target.name
        return f"{at}: {who} needs a {last}: choose {group}={' | '.join(options)}"
    return f"{at}: a value is required: type {at}=..."


def _is_read(at: str, kind: str) -> bool:
    """Whether this kind of target reads the setting: a value that nobody reads may stay open."""
    root = at.partition(".")[0]
    if root in ("paths", "needs"):
        return False  # paths that are used are reported where they are used
    if root == "evaluation":
        return kind == "evaluate"
    return kind == "train" or root in ("task", "hardware", "logger")
