"""What hostile code tries: one entry an attack, each with what a success would look like.

`open` says that an attack does succeed without the sandbox's layers, for root on this kind of
host: that run shows that it is a real one. There it runs with nothing around it, so an `open`
attack must change nothing on the host: it asks (`os.access`), repeats what is so already, or
undoes what it did. The others are harmless too if a layer should fail: they name paths that only
the sandbox has. `python -m attacks` prints the outcome of each (for the run as another user).
"""

from __future__ import annotations

from attacks.attack import Attack
from attacks.crashes import CRASHES
from attacks.files import FILES
from attacks.floods import FLOODS
from attacks.imports import FATAL_CODE, IMPORTS
from attacks.kernel import FATAL_CALLS, KERNEL
from attacks.neighbours import NEIGHBOURS, with_victim
from attacks.network import NETWORK
from attacks.online import ONLINE
from attacks.poison import HAUNTINGS, STRANGERS, Haunting, run_haunting
from attacks.processes import PROCESSES
from attacks.programs import PROGRAMS
from attacks.results import RESULTS
from attacks.running import run_attack, survivors, write_package
from attacks.timing import TIMING

__all__ = [
    "ATTACKS",
    "FATAL",
    "GETS_THROUGH",
    "HAUNTINGS",
    "NEIGHBOURS",
    "STRANGERS",
    "Attack",
    "Haunting",
    "run_attack",
    "run_haunting",
    "survivors",
    "with_victim",
    "write_package",
]

ATTACKS: tuple[Attack, ...] = (
    *FILES, *PROCESSES, *NETWORK, *PROGRAMS, *KERNEL, *RESULTS, *TIMING, *FLOODS, *CRASHES,
    *IMPORTS, *ONLINE,
)  # fmt: skip
# A call of 32 bits or of x32 must kill: there is nobody to return an error to.
FATAL: tuple[Attack, ...] = (*FATAL_CALLS, *FATAL_CODE)

# What gets through today, and should not: whoever repairs one takes its name away here.
GETS_THROUGH = frozenset[str]()
