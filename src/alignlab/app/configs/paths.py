"""Where configs are found: in a checkout, an editable install, a wheel, and a user's own folder.

A checkout keeps `conf/` and `experiments/` at its top; a wheel carries both inside the package. `--config-dir` adds a
user's folder: groups laid out like `conf/`, experiments in `<folder>/experiments` or beside it, and Python modules
importable from the folder, from its parent and from the working directory.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from alignlab.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Roots:
    """Folders that a composition reads."""

    conf: Path
    experiments: tuple[Path, ...]
    user: Path | None = None  # --config-dir

    @property
    def python(self) -> tuple[Path, ...]:
        """Folders whose packages count as the user's own: their code is keyed, and a `_target_` may name it."""
        own = [Path.cwd()]
        if self.user is not None:
            own += [self.user, self.user.parent]
        return tuple(dict.fromkeys(p.resolve() for root in own for p in (root, root / "src") if p.is_dir()))


def shipped() -> tuple[Path, Path]:
    """The `conf` and `experiments` folders that alignlab brings: of the checkout, else of the installed package."""
    checkout = PACKAGE.parents[1]
    is_checkout = (
        PACKAGE.parent.name == "src" and (checkout / "pyproject.toml").is_file() and (checkout / "conf").is_dir()
    )
    home = checkout if is_checkout else PACKAGE
    return home / "conf", home / "experiments"


def roots(config_dir: str | Path | None = None) -> Roots:
    """All folders, with a user's `config_dir` if there is one. ConfigError where it hides or repeats what we ship."""
    conf, experiments = shipped()
    if config_dir is None:
        return Roots(conf, (experiments,))
    user = Path(config_dir).expanduser().resolve()
    if not user.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: there is no such folder")
    own = [p for p in (user / "experiments", user.parent / "experiments") if p.is_dir() and p != experiments.resolve()]
    if user == conf.resolve():
        return Roots(conf, (experiments, *own))
    _refuse_hidden(user, conf, skip="experiments")
    for folder in own:
        _refuse_hidden(folder, experiments)
    return Roots(conf, (experiments, *own), user)


def make_importable(found: Roots) -> None:
    """Put the user's folders at the end of `sys.path`: `_target_: mylab.losses.Mine` then works without an install."""
    for folder in found.python:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def _refuse_hidden(own: Path, ours: Path, skip: str = "") -> None:
    """The first folder that has a file wins, so a file of the same name would silently never be read."""
    for path in sorted(own.rglob("*.yaml")):
        name = path.relative_to(own)
        if name.parts[0] != skip and (ours / name).exists():
            raise ConfigError(
                f"{path}: alignlab has a {name} too, so this file would never be read; give it another name"
            )
