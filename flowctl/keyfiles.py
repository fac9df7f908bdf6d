"""A publisher's keys on this machine, and what is signed with them.

A private key is a file that only its owner can read, in a folder that only its owner can enter;
anything wider is refused, before the key is read, rather than put right: who could read it may have
read it. A private key is never printed, sent or copied.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flowctl.problems import Rejected

if TYPE_CHECKING:
    from flowmonkeyd.documents.signing import PrivateKey

__all__ = ["folder", "make", "own", "private", "public", "sign_file"]

KEY_BYTES_MAX = 16 * 1024
PACKAGE_BYTES_MAX = 256 * 1024 * 1024


def folder() -> Path:
    """Where keys are: `${XDG_CONFIG_HOME:-~/.config}/flowmonkey/keys`."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "flowmonkey" / "keys"


def make(name: str) -> tuple[str, Path]:
    """A new key under a name: (its id, the .pub file). Raises Rejected when there is one."""
    from flowmonkeyd.documents.signing import KEY_NAME, PrivateKey

    if not KEY_NAME.fullmatch(name):
        raise Rejected(
            f"cannot make the key {name!r}: its name should be letters, digits, '.', '_' and '-'"
        )
    place = folder()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_folder(place)
    secret, shown = place / f"{name}.key", place / f"{name}.pub"
    for path in (secret, shown):
        if os.path.lexists(path):
            raise Rejected(f"cannot make the key {name!r}: {path} exists; choose another name")
    key = PrivateKey.new()
    _write(secret, key.pem(), 0o600)
    _write(shown, key.public.line(name).encode(), 0o644)
    return key.public.id, shown


def own() -> list[dict[str, str]]:
    """The public halves of the keys here: `{name, id, key, file}`; what is no key is left out."""
    from flowmonkeyd.documents.signing import parse_public
    from flowmonkeyd.errors import Invalid

    found = []
    for path in sorted(folder().glob("*.pub")):
        try:
            key, name = parse_public(path.read_text())
        except (OSError, UnicodeDecodeError, Invalid):
            continue
        found.append({"name": name or path.stem, "id": key.id, "key": key.text, "file": str(path)})
    return found


def public(text: str) -> str:
    """The line of a .pub file: of the file, of one's own key by its name, or as it stands."""
    if text.startswith("ed25519:"):
        return text
    named = folder() / f"{text}.pub"
    path = named if "/" not in text and not os.path.exists(text) and named.exists() else Path(text)
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(KEY_BYTES_MAX).strip()
    except UnicodeDecodeError:
        raise Rejected(f"cannot read {path}: it is no .pub file") from None
    except OSError as exc:
        raise Rejected(f"cannot read {path}: {(exc.strerror or str(exc)).lower()}") from exc


def private(name: str) -> PrivateKey:
    """A private key by its name in the folder, or by its path. Raises Rejected unless it is a
    regular file of this user's that nobody else can read (and the folder of names likewise)."""
    from flowctl.documents import refusals
    from flowmonkeyd.documents.signing import PrivateKey

    by_path = "/" in name or name.endswith(".key")
    path = Path(name) if by_path else folder() / f"{name}.key"
    if not by_path and folder().exists():
        _check_folder(folder())
    try:
        # without blocking, for it may be a pipe
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Rejected(
            f"cannot use the key {name!r}: there is no {path}; make it with `flowctl key new`"
        ) from None
    except OSError as exc:
        raise Rejected(f"cannot use the key {path}: {(exc.strerror or '').lower()}") from exc
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Rejected(f"cannot use the key {path}: it is not a regular file")
        _check_access(path, found, 0o600)
        pem = os.read(fd, KEY_BYTES_MAX)
    finally:
        os.close(fd)
    with refusals(str(path)):
        return PrivateKey.from_pem(pem)


def sign_file(path: str, target: str, key: PrivateKey, comment: str) -> tuple[str, str | None]:
    """Sign a built package and write it whole: (its type@version, the id of who signed before).

    Raises Rejected for what a daemon would refuse, and changes nothing then.
    """
    from flowctl.documents import package_of, refusals
    from flowmonkeyd.documents.archive import MANIFEST, SIGNATURE, pack_files, read_archive
    from flowmonkeyd.documents.manifest import parse_manifest
    from flowmonkeyd.documents.signing import sign, signature_of

    if os.path.isdir(path):
        raise Rejected(f"cannot sign {path}: it is a folder; build it and sign the .afh file")
    with refusals(path):
        files = dict(read_archive(package_of(path)))
        before = signature_of(files)
        files[SIGNATURE] = sign(files, key, comment)
        manifest = parse_manifest(files[MANIFEST])
        data = pack_files(files)
    _replace(Path(target), data)
    return f"{manifest.type}@{manifest.version}", before.key_id if before else None


def _replace(target: Path, data: bytes) -> None:
    """The file is as it was, or all new, whenever this ends."""
    try:
        fd, name = tempfile.mkstemp(prefix=".flowctl-", dir=target.parent)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
                os.fchmod(fd, mode)
                file.flush()
                os.fsync(fd)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as exc:
        raise Rejected(f"cannot write {target}: {(exc.strerror or str(exc)).lower()}") from exc


def _write(path: Path, data: bytes, mode: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)  # whatever the umask
            file.write(data)
            file.flush()
            os.fsync(fd)
    except OSError as exc:
        raise Rejected(f"cannot write {path}: {(exc.strerror or str(exc)).lower()}") from exc


def _check_folder(place: Path) -> None:
    try:
        found = place.stat()
    except OSError as exc:
        raise Rejected(f"cannot use {place}: {(exc.strerror or str(exc)).lower()}") from exc
    _check_access(place, found, 0o700)


def _check_access(path: Path, found: os.stat_result, mode: int) -> None:
    if found.st_uid != os.geteuid():
        raise Rejected(f"cannot use {path}: it belongs to uid {found.st_uid}, not to you")
    if found.st_mode & 0o077:
        shown = f"{stat.S_IMODE(found.st_mode):04o}"
        raise Rejected(
            f"cannot use {path}: others have access to it (mode {shown}); `chmod {mode:o}` it, and "
            "make a new key if somebody may have read it"
        )
