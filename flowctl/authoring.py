"""`flowctl handler new` and `library`: what somebody who writes a handler uses, with `test`.

None of them needs a daemon. What is printed of a handler never steers the terminal.
"""

from __future__ import annotations

from pathlib import Path

import click

from flowctl.options import Leaf, Session
from flowctl.problems import Rejected
from flowctl.rehearsal import test

__all__ = ["COMMANDS"]


@click.command(cls=Leaf)
@click.argument("handler_type", metavar="TYPE")
@click.option(
    "--runtime",
    type=click.Choice(("python", "node", "typescript")),
    default="python",
    show_default=True,
    help="The language to write it in.",
)
@click.option("--stateful", is_flag=True, help="One that runs for long, with checkpoints.")
@click.option("--to", "folder", metavar="DIR", type=click.Path(), help="Where (its name).")
@click.pass_obj
def new(session: Session, handler_type: str, runtime: str, stateful: bool, folder: str) -> None:
    """Make a folder with a handler that works, its test and its README.

    The folder is called like the type's last part, so acme/resize is made in resize.

    \b
    Example:
      flowctl handler new acme/resize
      flowctl handler new acme/resize --runtime typescript --to handlers/resize
    """
    from flowctl.projects import create

    place = Path(folder or handler_type.rpartition("/")[2] or handler_type)
    names = create(handler_type, runtime, stateful, place)
    output = session.output

    def words() -> None:
        for name in names:
            output.line(str(place / name))
        output.note(f"next: flowctl handler test {place}")

    output.value({"folder": str(place), "files": names}, words)


@click.command(cls=Leaf)
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(exists=True))
@click.pass_obj
def library(session: Session, folder: str) -> None:
    """Put the library for JavaScript into DIR/node_modules, for editors and tests.

    `handler new` has done that; a fresh clone needs it again. A package brings its own.

    \b
    Example:
      flowctl handler library ./resize
    """
    from flowctl.vendor import install

    try:
        install(Path(folder))
    except OSError as exc:
        why = (exc.strerror or str(exc)).lower()
        raise Rejected(f"cannot write {folder}/node_modules/flowmonkey: {why}") from exc
    session.output.note(f"{folder}/node_modules/flowmonkey: written")


COMMANDS: tuple[click.Command, ...] = (new, test, library)
