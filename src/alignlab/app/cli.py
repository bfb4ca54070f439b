"""The command: `alignlab [override | -m | flag] ...` is a plain Hydra application, and a bare first word is a verb.

    alignlab experiments=quickstart/dpo method.loss.beta=0.3
    alignlab plan -m experiments=quickstart/dpo seed=0,1,2

Exit codes: 0 ok, 1 a job failed, 2 usage or config, 3 a missing extra or hardware, 130 and 143 stopped. `sys.argv` is
read once and never changed.
"""

import os
import sys
from collections.abc import Sequence

from alignlab.app.commands.launch import command
from alignlab.app.configs.nearest import hint
from alignlab.app.runs import stop
from alignlab.app.runs.quiet import quiet
from alignlab.errors import AlignlabError, ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` if None) and return its exit code."""
    quiet()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 or int(os.environ.get("LOCAL_RANK", 0)) > 0:
            raise ConfigError(
                "alignlab starts its own processes: run it once, without torchrun, with hardware.devices=N"
            )
        if words and not words[0].startswith(("-", "+", "~")) and "=" not in words[0]:
            return _verb(words[0], words[1:])
        return command(words)
    except AlignlabError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except SystemExit as end:  # argparse and Hydra end this way
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 2
    except KeyboardInterrupt:
        return stop.exit_code()
    except BrokenPipeError:  # `alignlab plan ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _verb(word: str, rest: list[str]) -> int:
    # not at the top: what only some verbs need is no part of every start
    from alignlab.app.commands.verbs import VERBS

    if word not in VERBS:
        what = "a setting is key=value, and the verbs are"
        raise ConfigError(f"{word}: there is no such verb{hint(word, VERBS, what=what)}")
    return VERBS[word](rest)


if __name__ == "__main__":
    sys.exit(main())
