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
from attacks.kernel import FATAL, KERNEL
from attacks.network import NETWORK
from attacks.processes import PROCESSES
from attacks.programs import PROGRAMS
from attacks.results import RESULTS
from attacks.running import run_attack, survivors, write_package
from attacks.timing import TIMING

__all__ = ["ATTACKS", "FATAL", "GETS_THROUGH", "Attack", "run_attack", "survivors", "write_package"]

ATTACKS: tuple[Attack, ...] = (
    *FILES,
    *PROCESSES,
    *NETWORK,
    *PROGRAMS,
    *KERNEL,
    *RESULTS,
    *TIMING,
    *FLOODS,
    *CRASHES,
)

# What gets through today, and should not: whoever repairs one takes its name away here.
GETS_THROUGH = frozenset(
    {"problem-of-many-lines", "ready-again", "ready-for-ever", "unconfined-after-the-request"}
)
