"""A handler that tries what each layer forbids; the pool runs it once at start."""
