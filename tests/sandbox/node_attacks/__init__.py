"""What hostile code tries in Node: one entry an attack, each with what a success would look like.

As `attacks` for Python, and with the same nouns; `open` says the same. Most of them go past the
refusals of our shim, which are words and no boundary: they run in a thread of loader hooks, where
Node is as it was made. `python -m node_attacks` prints the outcome of each.
"""

from __future__ import annotations

from node_attacks.channel import CHANNEL
from node_attacks.files import FILES
from node_attacks.limits import LIMITS
from node_attacks.network import NETWORK
from node_attacks.programs import PROGRAMS
from node_attacks.running import run_node_attack

__all__ = ["NODE_ATTACKS", "run_node_attack"]

NODE_ATTACKS = (*FILES, *PROGRAMS, *NETWORK, *LIMITS, *CHANNEL)
