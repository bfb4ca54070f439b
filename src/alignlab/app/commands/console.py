"""The talking of `alignlab chat`: lines in, commands or messages; replies out as they are written, or as JSON."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from alignlab.app.commands.chat_lines import COMMANDS, NAMES, as_message, is_command
from alignlab.app.configs.nearest import hint
from alignlab.app.runs import runfolder
from alignlab.errors import AlignlabError, ConfigError
from alignlab.evaluate.policy import RewardFunction
from alignlab.evaluate.quality import QualityFilter
from alignlab.evaluate.speaker import Reply, Sampling, Speaker


class Run(NamedTuple):
    """One side of a chat."""

    name: str
    speaker: Speaker
    sampling: Sampling


class Session:
    """One or two runs that are told the same."""

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        reward: RewardFunction | None,
        compare: bool,
        quality: QualityFilter | None,
        as_json: bool,
    ) -> None:
        """`compare`: two runs whose log-probs of a reply can be compared."""
        self._runs, self._reward, self._compare, self._as_json = list(runs), reward, compare, as_json
        self._quality = quality

    def run(self, script: Sequence[str] | None) -> int:
        """Take the lines of `script`, or those that are typed or piped in; the exit code.

        Where somebody types, a fault is told and the chat goes on; else it is raised.
        """
        is_typed = script is None and sys.stdin.isatty()
        if is_typed:
            self._note(f"{' and '.join(run.name for run in self._runs)}; /help lists the commands")
        for line in script if script is not None else _lines(is_typed):
            try:
                if not self._take(line):
                    break
            except AlignlabError as error:
                if not is_typed:
                    raise
                print(error, file=sys.stderr)
            except KeyboardInterrupt:
                if not is_typed:
                    raise
                print("\n(stopped)")
        return 0

    def _take(self, line: str) -> bool:
        """One line; whether the chat goes on."""
        if not is_command(line):
            if line.strip():
                self._tell(as_message(line))
            return True
        word, _, rest = line.strip().partition(" ")
        if word == "/quit":
            return False
        if word == "/help":
            self._note(COMMANDS)
        elif word == "/reset":
            for run in self._runs:
                run.speaker.reset()
            self._note("(a new dialogue)")
        elif word == "/save":
            self._save(rest.strip())
        else:
            raise ConfigError(f"{word}: there is no such command{hint(word, NAMES)}")
        return True

    def _tell(self, message: str) -> None:
        """The message to all runs. If one is stopped or fails, none of them keeps the exchange."""
        before = [run.speaker.turns for run in self._runs]
        try:
            for number, run in enumerate(self._runs):
                self._reply(run, message, self._runs[1 - number].speaker if self._compare else None)
        except BaseException:
            for run, turns in zip(self._runs, before, strict=True):
                run.speaker.turns = turns
            raise

    def _reply(self, run: Run, message: str, other: Speaker | None) -> None:
        if not self._as_json and len(self._runs) > 1:
            print(f"{run.name}:", end=" ", flush=True)
        write = _nowhere if self._as_json else _write
        reply = run.speaker.answer(
            message, run.sampling, write=write, reward=self._reward, other=other, quality=self._quality
        )
        if self._as_json:
            print(runfolder.as_json({"run": run.name, "message": message, **reply._asdict()}), flush=True)
        else:
            print(f"\n  [{figures(reply)}]", flush=True)

    def _save(self, name: str) -> None:
        if not name:
            raise ConfigError("/save: into which file? /save dialogue.jsonl")
        path = Path(name).expanduser()
        if path.exists():
            raise ConfigError(f"/save {name}: there is such a file already; give it another name")
        lines = [runfolder.as_json({"run": run.name, "messages": run.speaker.turns}) for run in self._runs]
        try:
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"/save {name}: cannot be written: {error.strerror}") from None
        self._note(f"(saved in {path})")

    def _note(self, text: str) -> None:
        """Told to who reads, not to what parses."""
        print(text, file=sys.stderr if self._as_json else sys.stdout)


def figures(reply: Reply) -> str:
    """What was measured of a reply, in one line."""
    parts = [f"{reply.length} tokens" + ("" if reply.complete else ", cut off")]
    parts += [f"the first {reply.forgotten} turns left out"] if reply.forgotten else []
    parts += [f"reward {reply.reward:.3f}"] if reply.reward is not None else []
    parts += [f"KL to its start {reply.kl:.3f}"] if reply.kl is not None else []
    parts += [f"log-prob less the other's {reply.gap:.3f}"] if reply.gap is not None else []
    parts += [f"quality: {', '.join(reply.problems)}"] if reply.problems else []
    parts += ["replaced"] if reply.shown != reply.response else []
    return ", ".join(parts)


def _lines(is_typed: bool) -> Iterator[str]:
    """Lines until the input ends; typed ones with editing and history."""
    if not is_typed:
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # input() is edited with it
    with suppress(EOFError):
        while True:
            yield input("> ")


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _nowhere(_text: Any) -> None:
    """Where replies are told as JSON."""
