"""TAB completion: Hydra's own, made to work after a verb, and the verbs themselves."""

import argparse
import os
from typing import Any

from alignlab.app.configs.compose import run_app
from alignlab.app.configs.paths import Roots

VERBS = ("plan", "describe", "check", "ls", "eval", "chat", "report", "doctor")


def complete(args: argparse.Namespace, roots: Roots) -> None:
    """Print the completions (or the installation script) that the shell asks for."""
    is_query = any(word.startswith("query=") for word in args.overrides)
    words = os.environ.get("COMP_LINE", "").split(" ")
    if is_query and len(words) == 2:
        print(" ".join(verb for verb in VERBS if verb.startswith(words[1])))
    if is_query and len(words) > 2 and words[1] in VERBS:
        # Hydra completes overrides; for it the verb is not there.
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
        os.environ["COMP_POINT"] = str(int(os.environ.get("COMP_POINT", "0")) - len(words[1]) - 1)
    run_app(args, _nothing, roots)


def _nothing(_cfg: Any) -> None:
    """Completion runs no job."""
