"""FlowMonkey's daemon: durable flows on SQLite whose steps run in a sandbox."""

__version__ = "0.1.0"
