"""Takes the secrets that an attempt was given out of what its handler says: pure.

Looked for are the value as it is, as JSON, Python, a URL and hex write it, its base64 alone or
within a longer text's (`Authorization: Basic`), and the lines of a value that has several. What a
handler does to a value beyond that (reverse it, encrypt it, say it letter by letter) is not seen.

Each form is searched for by itself. For three tokens one compiled pattern took 1.9 ms to make, as
these are made for every attempt, and this takes 0.04; RE2 gave up on the lines of a PEM file; and
`re` would keep the values in its cache after everything else has forgotten them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from flowmonkeyd import jsontext
from flowmonkeyd.vault.provider import VALUE_CHARS_MIN, Value

__all__ = ["LINE_CHARS_MIN", "LogMask", "Masks", "mark"]

# Shorter lines of a value ("}", "-----") are in other texts by chance.
LINE_CHARS_MIN = 6
# Of a value with more lines only the whole is looked for: each line costs in every text.
LINES_MAX = 256
# What is left of a value where a text was cut off, from so many characters on.
PIECE_CHARS_MIN = 6
# Who sends texts cuts the longest ones, at 16 KiB; a character may have four bytes.
MAYBE_CUT_CHARS = 16 * 1024 // 4 - 4

# (at_ms, stream, level, message, fields)
Log = tuple[int, str, str | None, str, Mapping[str, Any] | None]


def mark(name: str) -> str:
    """What stands where a value stood."""
    return f"[secret {name}]"


@dataclass(frozen=True, slots=True)
class _Span:
    start: int
    end: int
    name: str


class Masks:
    """What to look for, for one attempt. It holds values in clear: drop it with the attempt."""

    __slots__ = ("_as_json", "_by_pair", "_forms", "_longest", "_starts")

    def __init__(self, values: Mapping[str, Value]) -> None:
        forms: dict[str, str] = {}
        for name, value in values.items():
            for form in _forms(value):
                forms.setdefault(form, name)
        # Shortest first: a short line need not be searched for what is longer.
        forms = dict(sorted(forms.items(), key=lambda one: len(one[0])))
        self._forms = forms
        # As they are within JSON text: whether a tree has any is found in its text, at once.
        self._as_json = [jsontext.dumps(form)[1:-1] for form in forms]
        self._longest = max(map(len, forms), default=0)
        self._starts = {form[0] for form in forms}
        # What forms begin with, and what a text may end with that they begin with.
        self._by_pair: dict[str, list[str]] = {}
        for form in forms:
            for start in {form[:2], form[0]}:
                self._by_pair.setdefault(start, []).append(form)

    def text(self, text: str) -> str:
        """The text with a mark for each value."""
        masked = self._marked(text, self._found(text))
        if len(text) >= MAYBE_CUT_CHARS:
            masked = self._without_pieces(masked)
        return masked

    @property
    def longest_bytes(self) -> int:
        """What is looked for has at most so many bytes as UTF-8."""
        return 4 * self._longest

    def name_in(self, data: bytes) -> str | None:
        """Whose value is in these bytes, as UTF-8; None: nobody's."""
        for form, name in self._forms.items():
            if form.encode() in data:
                return name
        return None

    def tree(self, value: Any) -> Any:
        """A JSON value with marks in its texts and keys, and for numbers that are a value."""
        try:
            text = jsontext.dumps(value)
        except ValueError:  # a lone surrogate, say: somebody else's to refuse
            return self._walked(value)
        if any(form in text for form in self._as_json):
            return self._walked(value)
        if len(text) >= MAYBE_CUT_CHARS and _longest_text(value) >= MAYBE_CUT_CHARS:
            return self._walked(value)
        return value

    def ends_within(self, text: str) -> tuple[str, str] | None:
        """The longest end of a text that a value may begin with, and that value's name: what
        follows has to be seen."""
        tail = text[-(self._longest - 1) :] if self._longest > 1 else ""
        at, name = len(tail), ""
        for start in self._starts:
            place = tail.find(start)
            while 0 <= place < at:
                # By two characters: a text of one letter again and again would be slow by one.
                for form in self._by_pair.get(tail[place : place + 2], ()):
                    if len(form) > len(tail) - place and form.startswith(tail[place:]):
                        at, name = place, self._forms[form]
                        break
                place = tail.find(start, place + 1)
        return (tail[at:], name) if name else None

    def over(self, first: str, second: str) -> tuple[str, str]:
        """Two lines that followed each other, without the values that were cut between them."""
        for joint in ("", "\n"):
            border = len(first) + len(joint)
            for span in self._found(first + joint + second):
                if span.start < len(first) and span.end > border:
                    return first[: span.start] + mark(span.name), second[span.end - border :]
        return first, second

    def without_end(self, text: str) -> str:
        """A last line without the beginning of a value that it ends with."""
        end = self.ends_within(text)
        if end is None or len(end[0]) < PIECE_CHARS_MIN:
            return text
        return text[: -len(end[0])] + mark(end[1])

    def _found(self, text: str) -> list[_Span]:
        """Where values are, in order; what overlaps is one."""
        spans = []
        for form, name in self._forms.items():
            if len(form) > len(text):
                break
            place = text.find(form)
            while place >= 0:
                spans.append(_Span(place, place + len(form), name))
                place = text.find(form, place + len(form))
        if len(spans) < 2:
            return spans
        spans.sort(key=lambda span: (span.start, -span.end))
        merged = spans[:1]
        for span in spans[1:]:
            last = merged[-1]
            if span.start >= last.end:
                merged.append(span)
            elif span.end > last.end:
                merged[-1] = _Span(last.start, span.end, last.name)
        return merged

    def _marked(self, text: str, spans: list[_Span]) -> str:
        if not spans:
            return text
        parts, after = [], 0
        for span in spans:
            parts += [text[after : span.start], mark(span.name)]
            after = span.end
        return "".join([*parts, text[after:]])

    def _without_pieces(self, text: str) -> str:
        """A text that may have been cut off on either side, without what is left of values."""
        text = self.without_end(text)
        for form, name in self._forms.items():
            place = form.find(text[:PIECE_CHARS_MIN], 1)
            while place > 0:
                if text.startswith(form[place:]):
                    text = mark(name) + text[len(form) - place :]
                    break
                place = form.find(text[:PIECE_CHARS_MIN], place + 1)
        return text

    def _walked(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(key) if isinstance(key, str) else key: self._walked(one)
                for key, one in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._walked(one) for one in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            spans = self._found(str(value))
            return mark(spans[0].name) if spans else value
        return value


class LogMask:
    """An attempt's log lines as they come. A line of its output that may end within a value waits
    for the next one of its stream, which may be where the value goes on."""

    def __init__(self, masks: Masks) -> None:
        self._masks = masks
        self._held: dict[str, Log] = {}

    def add(self, line: Log, keep: Callable[[Log], None]) -> None:
        """A line came: `keep` gets those that can be kept, in the order of their stream."""
        at_ms, stream, level, message, fields = line
        masks = self._masks
        if stream == "log":  # whole, or cut off: never continued
            shown = None if fields is None else masks.tree(fields)
            keep((at_ms, stream, level, masks.text(message), shown))
            return
        before = self._held.pop(stream, None)
        if before is not None:
            first, message = masks.over(before[3], message)
            keep((*before[:3], masks.text(first), before[4]))
        if masks.ends_within(message) is not None:
            self._held[stream] = (at_ms, stream, level, message, fields)
        else:
            keep((at_ms, stream, level, masks.text(message), fields))

    def end(self, keep: Callable[[Log], None]) -> None:
        """No more will come."""
        for line in self._held.values():
            text = self._masks.without_end(self._masks.text(line[3]))
            keep((*line[:3], text, line[4]))
        self._held.clear()


def _longest_text(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        keys = max((len(key) for key in value if isinstance(key, str)), default=0)
        return max(keys, max(map(_longest_text, value.values()), default=0))
    if isinstance(value, list | tuple):
        return max(map(_longest_text, value), default=0)
    return 0


def _forms(value: Value) -> Iterator[str]:
    text, raw = value.text, value.raw
    yield from _written(text)
    if (stripped := text.strip()) != text:
        yield from _written(stripped)
    yield from _of_bytes(text.encode())
    if value.is_binary:
        yield from _of_bytes(raw)
        try:
            yield from (one for one in _written(raw.decode()) if len(one) >= VALUE_CHARS_MIN)
        except UnicodeDecodeError:
            pass
        yield repr(raw)[2:-1]
    lines = text.splitlines()
    if 1 < len(lines) <= LINES_MAX:
        for line in map(str.strip, lines):
            if len(line) >= LINE_CHARS_MIN:
                yield line
                if not _PLAIN.issuperset(line):
                    yield _escaped(line)


def _written(text: str) -> Iterator[str]:
    """As it is, and as JSON, JSON in JSON, Python and URLs write it."""
    yield text
    if not _PLAIN.issuperset(text):
        yield (escaped := _escaped(text))
        yield json.dumps(text)[1:-1]
        yield _escaped(escaped)
        yield repr(text)[1:-1]
    if not (text.isascii() and text.isalnum()):
        url = quote(text.encode(errors="replace"), safe="")
        component = url
        for sign in "!'()*":  # as encodeURIComponent leaves them
            component = component.replace(f"%{ord(sign):02X}", sign)
        # With slashes as they are in a path, and with spaces as in a form.
        for one in {url, url.replace("%2F", "/"), url.replace("%20", "+"), component}:
            yield one
            yield _lower_escapes(one)


# What JSON and Python write as it is.
_PLAIN = frozenset(map(chr, range(0x20, 0x7F))) - set("\"'\\")


def _of_bytes(raw: bytes) -> Iterator[str]:
    """Hex, and base64: alone, and of whatever it is within, at each of the three places in a
    group that it can begin at. The characters that depend on what is around it are left out."""
    yield from (raw.hex(), raw.hex().upper())
    for before in range(3):
        text = base64.b64encode(bytes(before) + raw).decode()
        first = -(-before * 8 // 6)
        last = (before + len(raw)) * 8 // 6
        alone = () if before else (text, text.rstrip("="))
        for one in (text[first:last], *alone):
            if len(one) >= PIECE_CHARS_MIN:
                yield one
                yield one.translate(_URL_SAFE)


_URL_SAFE = str.maketrans("+/", "-_")


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _lower_escapes(url: str) -> str:
    first, *rest = url.split("%")
    return first + "".join(f"%{part[:2].lower()}{part[2:]}" for part in rest)
