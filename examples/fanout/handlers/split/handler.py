"""Cuts a text into chapters at lines that begin with `#`."""


def handle(input, ctx):
    chapters = []
    for line in input.splitlines():
        if line.startswith("#"):
            chapters.append({"title": line.lstrip("# "), "text": ""})
        elif chapters:
            chapters[-1]["text"] += line + "\n"
    if not chapters:
        return ctx.failure("NO_CHAPTERS", "the text has no line that begins with #", False)
    return chapters
