"""Asks for what it should not get, and tells what it got."""

import urllib.request


def handle(input, ctx):
    found = {}
    for url in ctx.config["urls"]:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                found[url] = f"it worked: {response.read(100)!r}"
        except OSError as exc:
            found[url] = type(getattr(exc, "reason", exc)).__name__
    return found
