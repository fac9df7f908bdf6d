"""The pool in a process of its own, the sandbox host: strangers' bytes are read there.

`hosted` is the caller's side, `program` the host, `link` what is between them and `messages` what
they say. The caller trusts the host less than itself: it parses what the host sends as it would
parse what a handler sends.
"""
