"""All SQL. A change is a function of a `Tx`; `Store` runs it on the one writer thread."""

from flowmonkeyd.store.store import Committed, Store, Tx

__all__ = ["Committed", "Store", "Tx"]
