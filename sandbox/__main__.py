"""`python -m sandbox probe`: what this host gives the sandbox, layer by layer, for an operator.

`view` is what the probe starts for each other view: the layers of this process as JSON, with the
word `refuse` after it has given up making user namespaces.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys

from sandbox import linux, seccomp
from sandbox.probe import probe, view_here

__all__ = ["main"]

_USAGE = "usage: python -m sandbox probe [--json]"


def main(arguments: list[str]) -> int:
    """Print the report; 0 if every required layer holds here, 1 if not, 2 for a wrong word."""
    match arguments:
        case ["probe"]:
            report = probe()
            print(report.as_text(), end="")
        case ["probe", "--json"]:
            report = probe()
            print(json.dumps(report.as_dict(), indent=2))
        case ["view", *words] if words in ([], ["refuse"]):
            if words:
                program = seccomp.without_user_namespaces()
                if os.geteuid() != 0:
                    linux.no_new_privs()
                linux.seccomp(program)
            print(json.dumps([dataclasses.asdict(layer) for layer in view_here()]))
            return 0
        case _:
            print(_USAGE, file=sys.stderr)
            return 2
    return 0 if report.views[0].runs_handlers else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
