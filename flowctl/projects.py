"""New handlers: a folder made from the templates, with the library where editors look for it.

Owns what `flowctl handler new` writes. It writes into a folder of its own that must not be there
yet, whole or not at all, and never changes a file that somebody has.
"""

from __future__ import annotations

import keyword
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flowctl import vendor
from flowctl.problems import Rejected

__all__ = ["RUNTIMES", "create"]

RUNTIMES = ("python", "node", "typescript")
_TEMPLATES = Path(__file__).with_name("templates")
_SUFFIX = ".tmpl"  # so that no tool takes them for code


def create(handler_type: str, runtime: str, is_stateful: bool, folder: Path) -> list[str]:
    """Make a handler's folder and return the names of its files. Raises Rejected."""
    from flowmonkeyd.documents.manifest import HANDLER_TYPE

    if HANDLER_TYPE.fullmatch(handler_type) is None:
        raise Rejected(
            f"cannot make {handler_type!r}: a type is letters, digits, -, _ and ., with one "
            "slash at most, such as acme/resize"
        )
    if folder.exists():
        raise Rejected(f"cannot make {folder}: it is there already; name another with --to")
    files = dict(_rendered(handler_type, runtime, is_stateful, folder.name))
    try:
        # beside the place and renamed into it, so that a failure leaves nothing half made
        with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".new-") as made:
            place = Path(made) / "handler"
            place.mkdir()
            for name, text in files.items():
                (place / name).write_text(text, encoding="utf-8")
            if runtime != "python":
                vendor.install(place)
            os.rename(place, folder)
    except OSError as exc:
        raise Rejected(f"cannot make {folder}: {(exc.strerror or str(exc)).lower()}") from exc
    return sorted(files)


def _rendered(
    handler_type: str, runtime: str, is_stateful: bool, folder: str
) -> Iterator[tuple[str, str]]:
    words = re.findall(r"[A-Za-z0-9]+", handler_type.rpartition("/")[2])
    title = " ".join(words).capitalize()
    class_name = "".join(word[:1].upper() + word[1:] for word in words)
    places = sorted((_TEMPLATES / (runtime + "-stateful" * is_stateful)).iterdir())
    templates = {place.name: place.read_text(encoding="utf-8") for place in places}
    used = re.findall(r"\w+", " ".join(templates.values()))
    if class_name in used or keyword.iskeyword(class_name) or not class_name[:1].isalpha():
        class_name = f"Handler{class_name}"  # not to hide what the template needs
    values = {
        "__TYPE__": handler_type,
        "__NAME__": title or handler_type,
        "__CLASS__": class_name,
        "__FOLDER__": folder,
    }
    for name, text in templates.items():
        for mark, value in values.items():
            text = text.replace(mark, value)
        yield name.removesuffix(_SUFFIX), text
