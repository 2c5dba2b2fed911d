"""Errors that the user can fix, as one short line."""

LONGEST_MESSAGE = 500  # characters


class UserError(Exception):
    """An error that the user can fix. The message names the thing, says what was expected and what to do.

    It is always one short line, even if it quotes a damaged file: only printable characters are kept, and the middle of
    a long message is left out.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """A message as one line of printable characters; the middle of a long one is left out."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    if len(line) <= LONGEST_MESSAGE:
        return line
    half = LONGEST_MESSAGE // 2 - 3
    return f"{line[:half]} ... {line[-half:]}"
