"""FlowMonkey's command line: a client of the daemon's HTTP API over its Unix socket.

It knows the API and, for reading what users write, `flowmonkeyd.documents`; nothing else of the
daemon. Modules are imported by the command that needs them, so that a small list stays under
100 ms from exec to exit.
"""
