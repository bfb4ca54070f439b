"""What a line typed into a chat is: a command for the chat, or a message for the run."""

COMMANDS = """\
  /reset       forget the dialogue
  /save FILE   write the dialogue so far, a line of JSON per run: {"run": ..., "messages": [...]}
  /help        this
  /quit        the end (so is Ctrl-D); Ctrl-C stops a reply, which is then not kept
  //...        a message that begins with one slash"""
NAMES = ("/reset", "/save", "/help", "/quit")


def is_command(line: str) -> bool:
    """Whether a line is for the chat and not for the run."""
    return line.lstrip().startswith("/") and not line.lstrip().startswith("//")


def as_message(line: str) -> str:
    """What the run is told: of two slashes at the beginning one is left."""
    return line.replace("//", "/", 1) if line.lstrip().startswith("//") else line
