"""Lists of overrides in, composed configs out. Everything private of Hydra's that we use is used here.

Hydra is pinned below 1.4. A composition walks the defaults list once per set of group choices (about 70 ms); values are
laid on a copy of the result (about 5 ms), by the very function Hydra uses. `tests/app/test_compose.py` holds the two
ways equal. Nothing is resolved here.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.utils import _run_hydra, create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignlab.app.configs.paths import Roots
from alignlab.app.configs.schema import Need, Root
from alignlab.errors import ConfigError

CONFIG = "config"


class Composed(NamedTuple):
    """A config, unresolved, and the option chosen in each group."""

    cfg: DictConfig
    choices: dict[str, str | None]


class ExperimentsSource(FileConfigSource):
    """`experiments/` as one flat group: experiments=quickstart/dpo is listed, completed and globbed by its path."""

    @staticmethod
    def scheme() -> str:
        return "experiments"

    def load_config(self, config_path: str) -> ConfigResult:
        return super().load_config(config_path.removeprefix("experiments/"))

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", "experiments")

    def is_config(self, config_path: str) -> bool:
        return config_path.startswith("experiments/") and super().is_config(config_path.removeprefix("experiments/"))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else ["experiments"]
        if config_path != "experiments" or results_filter == ObjectType.GROUP:
            return []
        root = Path(self.path)
        return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


_searched: list[Roots] = []  # whose folders the plugin below adds; empty outside of `_searching`


class AlignlabSearchPath(SearchPathPlugin):
    """Adds experiments and the user's folder, for our own compositions only."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for roots in _searched[-1:]:
            for folder in roots.experiments:
                search_path.append("alignlab", f"experiments://{folder}")
            if roots.user is not None:
                search_path.append("config-dir", f"file://{roots.user}")


def _store_schema() -> None:
    schema = OmegaConf.structured(Root)
    schema.needs._set_flag("struct", False)  # needs.sft.override.method.lr=1e-4 is typed without a +
    ConfigStore.instance().store(name="schema", node=schema)


Plugins.instance().register(ExperimentsSource)
Plugins.instance().register(AlignlabSearchPath)
_store_schema()


@contextmanager
def _searching(roots: Roots) -> Iterator[None]:
    _searched.append(roots)
    try:
        yield
    finally:
        _searched.pop()


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Hydra's own command line: overrides and flags, in any order."""
    parser = get_args_parser()
    parser.prog = "alignlab"
    return parser.parse_intermixed_args(list(argv))


def run_app(args: argparse.Namespace, job: Callable[[DictConfig], Any], roots: Roots) -> None:
    """The plain Hydra application: one job or a sweep, or what --help, --cfg and their like print.

    Raises SystemExit as Hydra does; `args` stand for the command line, so `sys.argv` is neither read nor changed.
    """
    version.setbase("1.3")
    args = argparse.Namespace(**{**vars(args), "config_dir": None})  # the plugin adds the user's folder
    GlobalHydra.instance().clear()
    try:
        with _searching(roots):
            _run_hydra(
                args=args,
                args_parser=get_args_parser(),
                task_function=job,
                config_path=str(roots.conf),
                config_name=CONFIG,
            )
    except (HydraException, OmegaConfBaseException) as error:  # --help does not report them itself
        raise ConfigError(_first_line(error)) from None


def job_overrides() -> list[str]:
    """The overrides of the job that Hydra runs now, as typed: `${...}` stays `${...}`."""
    typed = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(typed, list)
    return [str(text) for text in typed]


class Composer:
    """Composes from one set of folders and remembers what it composed."""

    def __init__(self, roots: Roots) -> None:
        version.setbase("1.3")
        setup_globals()
        self.roots = roots
        with _searching(roots):
            self._loader = ConfigLoaderImpl(create_config_search_path(str(roots.conf)))
        self._parser = OverridesParser.create(self._loader)
        self._composed: dict[tuple[str, ...], Composed] = {}
        self._chosen: dict[tuple[str, ...], Composed] = {}
        self._options: dict[str, list[str]] = {}
        self.num_composed = 0

    def options(self, group: str) -> list[str]:
        """The options of a group; empty where there is no such group."""
        if group not in self._options:
            self._options[group] = list(self._loader.get_group_options(group, ObjectType.CONFIG))
        return self._options[group]

    def groups(self, parent: str = "") -> list[str]:
        """All groups with options, nested ones as `method/loss`; Hydra's own left out."""
        found: list[str] = []
        for name in self._loader.list_groups(parent):
            group = f"{parent}/{name}" if parent else name
            if group == "hydra" or group.startswith("experiments/"):
                continue
            found += [group] if self.options(group) else []
            found += self.groups(group)
        return found

    def is_group(self, key: str) -> bool:
        """Whether `key` is typed as group=option. `experiments/quickstart` is a folder of one group, not a group."""
        return "." not in key and bool(self.options(key)) and not key.startswith("experiments/")

    def parse(self, text: str) -> Override:
        """One override; ConfigError where it is not one."""
        try:
            return self._parser.parse_overrides([text])[0]
        except HydraException as error:
            lines = [line for line in str(error).splitlines() if line]
            raise ConfigError(f"{text}: this is not key=value as Hydra writes it ({lines[:2][-1]})") from None

    def expand(self, overrides: Sequence[str]) -> list[tuple[str, ...]]:
        """What `-m` launches: the product of all values given with commas, in Hydra's own order."""
        parsed = [self.parse(text) for text in overrides]
        try:
            batches = BasicSweeper.split_arguments(parsed, None)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_first_line(error)) from None
        return [tuple(job) for batch in batches for job in batch]

    def launchable(self, overrides: Sequence[str]) -> list[str]:
        """The overrides of a sweep as Hydra must be told them.

        Hydra composes what is fixed before it chooses what is swept, and so refuses a setting that only the swept
        options have (`-m experiments=a,b a.setting=1`). Said as a sweep over one value, it waits for its job.
        """
        if not any(self.is_choice(o) and o.is_sweep_override() for o in map(self.parse, overrides)):
            return list(overrides)
        said = []
        for text in overrides:
            override = self.parse(text)
            waits = not (self.is_choice(override) or override.is_sweep_override() or override.is_delete())
            key, _, value = text.partition("=")
            one = f"{key}=choice({value})"
            said.append(one if waits and self.expand([one]) == self.expand([text]) else text)
        return said

    def compose(self, overrides: Sequence[str]) -> Composed:
        """The config of a list of overrides. ConfigError with one line where Hydra cannot compose it."""
        key = tuple(overrides)
        if key not in self._composed:
            parsed = [self.parse(text) for text in key]
            choices = [o for o in parsed if self.is_choice(o)]
            base = self.choose([str(o.input_line) for o in choices])
            cfg = base.cfg.copy()
            for override in parsed:
                if override not in choices:
                    lay(override, cfg)
            self._composed[key] = Composed(_with_evaluation_needs(cfg), base.choices)
        return self._composed[key]

    def choose(self, overrides: Sequence[str]) -> Composed:
        """The whole composition by Hydra's loader; meant for group choices, which it alone can do."""
        key = tuple(overrides)
        if key not in self._chosen:
            self.num_composed += 1
            try:
                cfg = self._loader.load_configuration(CONFIG, list(key), RunMode.RUN)
            except (HydraException, OmegaConfBaseException) as error:
                raise ConfigError(self._said(error)) from None
            chosen = OmegaConf.to_container(cfg.hydra.runtime.choices)
            assert isinstance(chosen, dict)
            if cfg.hydra.sweeper.get("params"):
                raise ConfigError(
                    "hydra.sweeper.params in a yaml cannot be planned: give the values on the command line"
                )
            OmegaConf.set_readonly(cfg, False)
            OmegaConf.set_struct(cfg, False)
            del cfg["hydra"]
            self._chosen[key] = Composed(cfg, {str(k): v for k, v in chosen.items() if not str(k).startswith("hydra/")})
        return self._chosen[key]

    def is_choice(self, override: Override) -> bool:
        """group=option, which Hydra's defaults list must see; everything else is a value."""
        key = override.key_or_group
        if self.is_group(key) and isinstance(override.value(), dict):
            return False  # adapter={rank: 4} is a value, for Hydra too
        return override.package is not None or "/" in key or self.is_group(key)

    def _said(self, error: Exception) -> str:
        """Hydra's composition errors as one line."""
        text = str(error)
        if missing := re.match(r"You must specify '([^']+)'", text):
            return f"{missing[1]}: an option must be chosen: {missing[1]}={'|'.join(self.options(missing[1]))}"
        if unasked := re.match(r"Could not override '([^']+)'\. No match in the defaults list", text):
            owner, _, last = unasked[1].rpartition("/")
            why = f", the chosen {owner} has none" if owner else ""
            return f"{unasked[1]}: there is no {last} to choose here{why}"
        if unknown := re.match(r"In '([^']*)': Could not find '([^']+)'", text):
            return f"{unknown[1]}: its defaults name {unknown[2]}, and there is no such file"
        return _first_line(error)


def lay(override: Override, cfg: DictConfig) -> None:
    """Apply one value override in place, as Hydra does. ConfigError where the key or the type does not fit."""
    OmegaConf.set_struct(cfg, True)
    try:
        ConfigLoaderImpl._apply_overrides_to_config([override], cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{override.key_or_group}: {_first_line(error)}") from None
    finally:
        OmegaConf.set_struct(cfg, False)


def _with_evaluation_needs(cfg: DictConfig) -> DictConfig:
    """`evaluation.needs` gets the fields of a need: the node `evaluation` is free, so the schema does not reach it."""
    needs = OmegaConf.select(cfg, "evaluation.needs")
    for name in needs or {}:
        node = needs._get_node(name)
        if not (isinstance(node, DictConfig) and node._metadata.object_type is Need):
            needs[name] = OmegaConf.merge(OmegaConf.structured(Need), node)
    return cfg


def _first_line(error: BaseException) -> str:
    """What went wrong in one line: the innermost cause says it best."""
    context = error.__cause__ or error.__context__
    if isinstance(context, OmegaConfBaseException) and str(error).startswith(("Error merging", "Could not override")):
        error = context
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
