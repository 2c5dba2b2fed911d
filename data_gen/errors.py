"""What the user can put right, as one short line."""

LONGEST_MESSAGE = 500  # characters


class UserError(Exception):
    """Something the user can put right. The message names it, says what was expected and what to do.

    It is one short line, whatever the broken file that it quotes holds: only what can be printed is kept, and a long
    message loses its middle.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """A message as one line of what can be printed, its middle left out where it is long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    if len(line) <= LONGEST_MESSAGE:
        return line
    half = LONGEST_MESSAGE // 2 - 3
    return f"{line[:half]} ... {line[-half:]}"
