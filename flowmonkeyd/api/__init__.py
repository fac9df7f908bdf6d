"""HTTP over the Unix socket: one route table, wire models, thin functions."""
