"""The `flowctl` program: its commands, its exit codes, its last words.

Owns the one table from what went wrong to the exit code (contract, section 6) and prints the
message on stderr. Nothing else in flowctl exits the process.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence

import click

from flowctl import problems
from flowctl.options import LazyGroup
from flowctl.output import neutral

__all__ = ["EXIT_CODES", "cli", "exit_code", "main"]

EXIT_CODES: dict[type[problems.FlowctlError], int] = {
    problems.NotCompleted: 1,
    problems.Unreachable: 3,
    problems.BadAnswer: 3,
    problems.NotReady: 3,
    problems.Refused: 5,
    problems.Rejected: 5,
    problems.TimedOut: 6,
    problems.Interrupted: 130,
    problems.ReaderGone: 141,  # as a shell reports a death by SIGPIPE
}
EXIT_USAGE = 2
EXIT_NOT_FOUND = 4
EXIT_INTERRUPTED = 130

# The interpreter's last collections would walk all that was imported only to free it: 7 of 69 ms.
atexit.register(gc.freeze)

cli = LazyGroup(
    "flowctl",
    places={
        "status": "flowctl.operations:status",
        "version": "flowctl.operations:version",
        "completion": "flowctl.operations:completion",
        "flow": "flowctl.flows:flow",
        "run": "flowctl.flows:run",
        "execution": "flowctl.executions:execution",
        "job": "flowctl.jobs:job",
        "event": "flowctl.events:event",
        "handler": "flowctl.handlers:handler",
        "key": "flowctl.keys:key",
        "secret": "flowctl.vault:secret",
        "image": "flowctl.images:image",
        "sandbox": "flowctl.sandboxes:sandbox",
        "queue": "flowctl.operations:queue",
        "billing": "flowctl.billing:billing",
        "pool": "flowctl.sandboxes:pool",
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="""Run and look after flows on the FlowMonkey daemon of this machine.

    \b
    Example:
      flowctl flow apply order.yaml
      flowctl run order --context '{"n": 1}'
      flowctl execution list --status failed

    \b
    Exit codes: 0 ok; 1 the execution failed or was cancelled; 2 usage;
    3 the daemon cannot be reached; 4 not found; 5 refused; 6 waiting timed out.
    """,
)


def exit_code(problem: problems.FlowctlError) -> int:
    """The exit code for what went wrong; the statuses of the API are sorted here."""
    if isinstance(problem, problems.Refused):
        if problem.status == 404:
            return EXIT_NOT_FOUND
        if problem.status >= 500:  # it answers, but cannot serve
            return EXIT_CODES[problems.Unreachable]
    return EXIT_CODES[type(problem)]


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A name may hold what the terminal's encoding, or any, cannot express.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        result = cli.main(args, prog_name="flowctl", standalone_mode=False)
    except problems.FlowctlError as exc:
        _say(exc)
        return exit_code(exc)
    except click.ClickException as exc:
        exc.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def _say(problem: problems.FlowctlError) -> None:
    if isinstance(problem, problems.ReaderGone):
        # what is still buffered must not be tried again when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif problem.message:
        first, *rest = problem.message.splitlines()
        for line in (f"flowctl: {first}", *rest):
            print(neutral(line), file=sys.stderr)
