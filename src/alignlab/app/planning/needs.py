"""What a target hands up to a target that it needs: plain overrides, so that a need is a command that one could type.

A group is handed up as its choice and what was changed below it (not as the whole node, which would overwrite the
parent file's own settings); a value as it is. What is wired to a need stays with the child. `hardware`, `logger` and
`paths` pass on wherever they differ from the defaults or were typed. `inherit: [data, ~data.batch_size]` hands up the
group but for one setting.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from alignlab.app.configs.compose import Composed, Composer
from alignlab.app.configs.content import raw_at
from alignlab.app.configs.nearest import hint
from alignlab.app.configs.schema import GROUPS_PASSED_ON
from alignlab.app.configs.spell import flat, spell
from alignlab.errors import ConfigError

_WIRED = re.compile(r"\$\{\s*(evaluation\.)?needs\.")


def handed_up(
    composer: Composer, child: Composed, overrides: tuple[str, ...], need: dict[str, Any], at: str
) -> list[tuple[str, ...]]:
    """The overrides of each target that a need names: one, or a grid of them.

    `need` holds the fields of `schema.Need`, resolved; `at` is its path in the config. ConfigError names the fault.
    """
    if not need["experiments"]:
        raise ConfigError(
            f"{at}.experiments: a need names the experiment that it is (experiments: quickstart/sft), or a path"
        )
    handed = [f"experiments={spell(need['experiments'])}"]
    typed = {_key_of(text) for text in overrides}
    passed = [*_passed_on(composer, child, typed)]
    paths = [str(path).replace("/", ".") for path in need["inherit"]]
    kept = [path[1:] for path in paths if path.startswith("~")]
    for path in (path for path in paths if not path.startswith("~")):
        inherited = _inherited(composer, child, typed, path, at)
        passed += [text for text in inherited if not _is_in(_key_of(text).replace("/", "."), kept)]
    passed += [f"{key}={spell(value)}" for key, value in flat(need["override"])]
    # Choices first: the order that Hydra applies them in, and the one that reads well in a plan.
    handed += sorted(passed, key=lambda text: not composer.is_choice(composer.parse(text)))
    return [_last_wins((*handed, *point)) for point in _points(need["grid"], at)]


def _inherited(composer: Composer, child: Composed, typed: set[str], path: str, at: str) -> list[str]:
    group = path.replace(".", "/")
    chosen = [f"{g}={spell(c)}" for g, c in child.choices.items() if g == group or g.startswith(group + "/")]
    if chosen:
        above = [f"{g}={spell(c)}" for g, c in child.choices.items() if group.startswith(g + "/")]
        return chosen + _changed_below(composer, child.cfg, typed, path, [*above, *chosen])
    there, value = raw_at(child.cfg, path)
    if not there:
        above, _, last = path.rpartition(".")
        names = raw_at(child.cfg, above)[1] if above else child.cfg
        names = [str(n) for n in names] if isinstance(names, (dict, DictConfig)) else []
        raise ConfigError(f"{at}.inherit: there is no {path} here{hint(last, names, prefix=above and above + '.')}")
    leaves = flat(value, path) if isinstance(value, dict) else [(path, value)]
    return [f"{key}={spell(v)}" for key, v in leaves if not _is_wired(v) and v != {}]


def _changed_below(composer: Composer, cfg: DictConfig, typed: set[str], path: str, chosen: list[str]) -> list[str]:
    """Leaves below a group that differ from the options composed alone, or were typed: changed, new and gone ones."""
    ours = dict(_leaves(cfg, path))
    default = composer.choose(()).choices  # what is chosen by default needs no composition of its own
    written = dict(
        _leaves(composer.choose([t for t in chosen if t != f"{_key_of(t)}={default.get(_key_of(t))}"]).cfg, path)
    )
    out = []
    for key, value in ours.items():
        if _is_wired(value):
            continue
        if key not in written:
            out.append(f"++{key}={spell(value)}")
        elif value != written[key] or type(value) is not type(written[key]) or key in typed:
            out.append(f"{key}={spell(value)}")
    above_ours = {key.rsplit(".", depth)[0] for key in ours for depth in range(key.count(".") + 1)}
    return out + [
        f"~{key}" for key in written if key not in ours and key not in above_ours and not _is_wired(written[key])
    ]


def _passed_on(composer: Composer, child: Composed, typed: set[str]) -> Iterator[str]:
    default = composer.choose(())
    for group in GROUPS_PASSED_ON:
        chosen = [f"{g}={spell(c)}" for g, c in child.choices.items() if g == group or g.startswith(group + "/")]
        shown = [
            t for t in chosen if _key_of(t) in typed or child.choices[_key_of(t)] != default.choices.get(_key_of(t))
        ]
        yield from shown
        yield from _changed_below(composer, child.cfg, typed, group, chosen)
    defaults = dict(_leaves(default.cfg, "paths"))
    for key, value in _leaves(child.cfg, "paths"):
        if key in typed or defaults.get(key, value) != value:
            yield f"{key}={spell(value)}"


def _leaves(cfg: DictConfig, path: str) -> list[tuple[str, Any]]:
    _, value = raw_at(cfg, path)
    return flat(value, path) if isinstance(value, dict) else [(path, value)]


def _points(grid: Any, at: str) -> list[tuple[str, ...]]:
    """The product of a grid {key: [values]}; a list of grids is their union; no grid is one point with nothing set."""
    if not grid:
        return [()]
    points = []
    for one in grid if isinstance(grid, list) else [grid]:
        if not isinstance(one, dict) or not all(isinstance(values, list) and values for values in one.values()):
            raise ConfigError(
                f"{at}.grid: a grid is a mapping of settings to lists of values, or a list of such mappings"
            )
        for values in itertools.product(*one.values()):
            points.append(tuple(f"{key}={spell(value)}" for key, value in zip(one, values)))
    return points


def _last_wins(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """One override per key: an `override` or a grid sets what was inherited."""
    last = {_key_of(text): text for text in overrides}
    return tuple(last[key] for key in dict.fromkeys(_key_of(text) for text in overrides))


def _is_in(path: str, kept: list[str]) -> bool:
    return any(path == one or path.startswith(one + ".") for one in kept)


def _is_wired(value: Any) -> bool:
    return isinstance(value, str) and _WIRED.search(value) is not None


def _key_of(text: str) -> str:
    return text.partition("=")[0].lstrip("+~")
