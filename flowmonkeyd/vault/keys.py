"""Where the vault's keys come from, and the file they are in.

From one of: the file that `vault.keyFile` names, the environment variable FLOWMONKEY_VAULT_KEY
(taken out of the environment as it is read), the systemd credential flowmonkey-vault-key
(systemd.exec(5), LoadCredential=), or else `vault.key` in the data directory, which is made when
the first secret is kept. Each may hold several keys: the first seals, all of them open. A file
that others may read is refused with what to do about it. No error quotes what is in one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, MutableMapping
from pathlib import Path

from flowmonkeyd.errors import Conflict, Unavailable
from flowmonkeyd.vault.sealed import Key

__all__ = ["CREDENTIAL", "OWN_FILE", "VARIABLE", "Keyring", "keyring", "read_private"]

VARIABLE = "FLOWMONKEY_VAULT_KEY"
CREDENTIAL = "flowmonkey-vault-key"
OWN_FILE = "vault.key"
# One seals and one is on its way out; the rest are rotations that a full disk interrupted.
KEYS_MAX = 8
FILE_BYTES_MAX = 16 * 1024


class Keyring:
    """The keys, newest first; none yet when the daemon is still to make its own. `path` is the
    file that the daemon may write them to, None when they come from elsewhere."""

    def __init__(self, origin: str, path: Path | None, keys: tuple[Key, ...] = ()) -> None:
        self.origin = origin
        self.path = path
        self.keys = keys

    @property
    def current(self) -> Key | None:
        """The key that seals."""
        return self.keys[0] if self.keys else None

    def of(self, key_id: str) -> Key | None:
        return next((key for key in self.keys if key.id == key_id), None)

    def add(self, key: Key) -> None:
        """Seal with this one from now on; it is on disk when this returns. Raises Conflict when
        the keys are not the daemon's to write, Unavailable when they cannot be written."""
        if self.path is None:
            raise Conflict(
                f"cannot make a new key: the vault's key comes from {self.origin}; put the new one "
                "before the old one there, restart, and take the old one away"
            )
        if len(self.keys) >= KEYS_MAX:
            why = f"{self.path} has {KEYS_MAX} keys, whose secrets could not be sealed anew"
            raise Conflict(f"cannot make a new key: {why}; see the daemon's log")
        self._save((key, *self.keys))

    def keep(self, key_ids: Collection[str]) -> None:
        """Forget all other keys but the current one, if they are the daemon's to forget."""
        kept = tuple(key for key in self.keys if key is self.current or key.id in key_ids)
        if self.path is not None and kept != self.keys:
            self._save(kept)

    def _save(self, keys: tuple[Key, ...]) -> None:
        assert self.path is not None
        text = "".join(f"{key.text()}\n" for key in keys)
        try:
            _replace(self.path, text.encode())
        except OSError as exc:
            why = f"cannot write {self.path}: {exc.strerror}"
            raise Unavailable(f"cannot change the vault's keys: {why}") from None
        self.keys = keys


def keyring(key_file: str, data_dir: Path, environ: MutableMapping[str, str]) -> Keyring:
    """The keys that this daemon is given. Raises Unavailable with what is wrong with them."""
    variable = environ.pop(VARIABLE, None)
    credential = _credential(environ)
    given = [
        *(["vault.keyFile"] if key_file else []),
        *([f"the variable {VARIABLE}"] if variable is not None else []),
        *([f"the credential {CREDENTIAL}"] if credential is not None else []),
    ]
    if len(given) > 1:
        raise Unavailable(f"cannot tell which key the vault's is: {' and '.join(given)} are given")
    if key_file:
        path = Path(key_file).resolve()
        return Keyring(f"the file {path}", path, _parsed(read_private(path), f"{path}"))
    if variable is not None:
        return Keyring(given[0], None, _parsed(variable, given[0]))
    if credential is not None:
        text = read_private(credential, is_credential=True)
        return Keyring(given[0], None, _parsed(text, given[0]))
    path = data_dir.resolve() / OWN_FILE
    if not path.exists():
        return Keyring(f"the file {path}", path)
    return Keyring(f"the file {path}", path, _parsed(read_private(path), f"{path}"))


def read_private(path: Path, is_credential: bool = False) -> str:
    """The text of a file that only this daemon may read. Raises Unavailable with the fix.

    systemd's credentials may be root's, and show the mask of their access list as the group's
    mode; the folder keeps others out.
    """
    try:
        # Non-blocking, so that a FIFO in its place does not stop the start.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise Unavailable(f"cannot read {path}: {exc.strerror}") from None
    try:
        _only_ours(path, os.fstat(fd), is_credential)
        text = os.read(fd, FILE_BYTES_MAX + 1)
    finally:
        os.close(fd)
    try:
        if len(text) <= FILE_BYTES_MAX:
            return text.decode("ascii")
    except UnicodeDecodeError:
        pass
    raise Unavailable(f"cannot use {path}: it is no short text")


def _only_ours(path: Path, about: os.stat_result, is_credential: bool) -> None:
    uid, mode = os.geteuid(), stat.S_IMODE(about.st_mode)
    if not stat.S_ISREG(about.st_mode):
        raise Unavailable(f"cannot read {path}: it is no file")
    if about.st_uid != uid and not (is_credential and about.st_uid == 0):
        raise Unavailable(
            f"cannot use {path}: it belongs to uid {about.st_uid} and this daemon runs as uid "
            f"{uid}; run `chown {uid} {path}`"
        )
    if mode & (0o007 if is_credential else 0o077):
        raise Unavailable(
            f"cannot use {path}: others may read it (mode {mode:04o}); run `chmod 600 {path}`, "
            "and take another one if somebody may have read it"
        )


def _credential(environ: MutableMapping[str, str]) -> Path | None:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory) / CREDENTIAL if directory else None
    return path if path is not None and path.exists() else None


def _parsed(text: str, origin: str) -> tuple[Key, ...]:
    words = text.split()
    how = "32 random bytes as base64, as `openssl rand -base64 32` makes"
    if not 1 <= len(words) <= KEYS_MAX:
        raise Unavailable(f"cannot use {origin}: it should be a key, {how}")
    try:
        return tuple(map(Key.parse, words))
    except ValueError as exc:
        raise Unavailable(f"cannot use {origin}: {exc}; a key is {how}") from None


def _replace(path: Path, text: bytes) -> None:
    """Another content for a private file, all of it or nothing, whenever the power goes."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    os.rename(fresh, path)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
