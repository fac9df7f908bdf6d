"""Counts the words of one chapter."""

import re
from collections import Counter


def handle(input, ctx):
    words = Counter(re.findall(r"\w+", input["text"].lower()))
    if not words:
        return ctx.failure("EMPTY_CHAPTER", f"nothing under {input['title']!r}", retryable=False)
    return dict(words)
