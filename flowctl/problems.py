"""What can go wrong for a command, as exceptions that carry the words for the person.

Commands raise these and never exit themselves; `main` prints the message on stderr and maps the
kind to the exit code. A message may have several lines; the first says what cannot be done, why
and what to do.
"""

from __future__ import annotations

__all__ = [
    "BadAnswer",
    "FlowctlError",
    "Interrupted",
    "NotCompleted",
    "NotReady",
    "ReaderGone",
    "Refused",
    "Rejected",
    "TimedOut",
    "Unreachable",
]


class FlowctlError(Exception):
    """A command could not do what it was asked; `message` is for stderr, empty = say nothing."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class Unreachable(FlowctlError):
    """Nobody answers on the socket, or the connection broke."""


class BadAnswer(FlowctlError):
    """Something answered, but not as the daemon does: half a body, HTML, broken JSON."""


class NotReady(FlowctlError):
    """The daemon answers but does not take work: it is starting, draining or unwell."""


class ReaderGone(FlowctlError):
    """Nobody reads stdout any more, as with `| head`; there is nothing to say and no fault."""


class Refused(FlowctlError):
    """The daemon said no; `status` and `code` are those of its problem document."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Rejected(FlowctlError):
    """A document or package that is refused here, before anything is sent.

    `lines` are its problems, `path: message` each; they are in the message too.
    """

    def __init__(self, message: str = "", lines: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join((message, *lines)))
        self.lines = lines


class NotCompleted(FlowctlError):
    """The execution that was watched has failed or was cancelled."""


class TimedOut(FlowctlError):
    """The execution did not end within the time given; it goes on."""


class Interrupted(FlowctlError):
    """The person pressed Ctrl-C; what was watched goes on."""
