"""Adds the counts of all chapters up: its input is the list that the sub-flow step puts out."""

from collections import Counter


def handle(input, ctx):
    total = Counter()
    for child in input:
        total.update(child["context"]["words"])
    return {
        "chapters": [child["context"]["chapter"]["title"] for child in input],
        "words": sum(total.values()),
        "most": [list(pair) for pair in total.most_common(ctx.config.get("most", 5))],
    }
