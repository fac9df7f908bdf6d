"""Where the vault's key comes from, and what is no key or may be read by others."""

from __future__ import annotations

import base64
import os

import pytest

from flowmonkeyd.errors import Conflict, Unavailable
from flowmonkeyd.vault.keys import CREDENTIAL, OWN_FILE, VARIABLE, keyring, read_private
from flowmonkeyd.vault.sealed import Key, Unsealable

ONE, TWO = Key.new(), Key.new()


def kept(path, text: str, mode: int = 0o600):
    path.write_text(text)
    path.chmod(mode)
    return path


def ids(ring) -> list[str]:
    return [key.id for key in ring.keys]


def test_a_key_comes_from_one_place(tmp_path):
    file = kept(tmp_path / "key", f"{ONE.text()}\n{TWO.text()}\n")
    assert ids(keyring(str(file), tmp_path, {})) == [ONE.id, TWO.id]
    assert ids(keyring("", tmp_path, {VARIABLE: ONE.text()})) == [ONE.id]
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    kept(credentials / CREDENTIAL, TWO.text(), 0o440)  # as systemd's access lists show
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert ids(keyring("", tmp_path, environ)) == [TWO.id]
    with pytest.raises(Unavailable, match="cannot tell which key the vault's is"):
        keyring(str(file), tmp_path, environ)
    with pytest.raises(Unavailable, match="cannot tell which key the vault's is"):
        keyring("", tmp_path, {**environ, VARIABLE: ONE.text()})


def test_the_variable_is_gone_after_it_was_read_whatever_is_in_it(tmp_path):
    environ = {VARIABLE: ONE.text(), "OTHER": "1"}
    keyring("", tmp_path, environ)
    assert environ == {"OTHER": "1"}
    environ[VARIABLE] = "nonsense"
    with pytest.raises(Unavailable, match="base64"):
        keyring("", tmp_path, environ)
    assert environ == {"OTHER": "1"}


def test_without_any_the_daemon_makes_its_own_when_it_is_needed(tmp_path):
    ring = keyring("", tmp_path, {})
    assert ring.current is None
    assert not (tmp_path / OWN_FILE).exists()
    old = os.umask(0)
    try:
        ring.add(ONE)
    finally:
        os.umask(old)
    assert (tmp_path / OWN_FILE).stat().st_mode & 0o777 == 0o600
    assert ids(keyring("", tmp_path, {})) == [ONE.id]
    ring.add(TWO)
    assert ids(keyring("", tmp_path, {})) == [TWO.id, ONE.id]
    ring.keep([])
    assert ids(keyring("", tmp_path, {})) == [TWO.id]
    assert sorted(os.listdir(tmp_path)) == [OWN_FILE]


def test_a_link_to_the_key_stays_one(tmp_path):
    file = kept(tmp_path / "real", ONE.text())
    (tmp_path / "link").symlink_to(file)
    keyring(str(tmp_path / "link"), tmp_path, {}).add(TWO)
    assert (tmp_path / "link").is_symlink()
    assert ids(keyring(str(file), tmp_path, {})) == [TWO.id, ONE.id]


def test_a_key_from_elsewhere_is_not_the_daemon_s_to_change(tmp_path):
    ring = keyring("", tmp_path, {VARIABLE: f"{ONE.text()} {TWO.text()}"})
    with pytest.raises(Conflict, match="put the new one before the old one there"):
        ring.add(Key.new())
    ring.keep([])
    assert ids(ring) == [ONE.id, TWO.id]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o602, 0o610])
def test_a_key_that_others_may_reach_is_refused_with_the_fix(tmp_path, mode):
    file = kept(tmp_path / "key", ONE.text(), mode)
    with pytest.raises(Unavailable, match=f"chmod 600 {file}") as caught:
        keyring(str(file), tmp_path, {})
    assert ONE.text() not in caught.value.message


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_somebody_else_s_key_is_refused_with_the_fix(tmp_path):
    file = kept(tmp_path / "key", ONE.text())
    os.chown(file, 12345, -1)
    with pytest.raises(Unavailable, match=f"chown 0 {file}"):
        keyring(str(file), tmp_path, {})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "should be a key"),
        ("\n", "should be a key"),
        (base64.b64encode(b"x" * 31).decode(), "has 32 bytes, not 31"),
        (base64.b64encode(b"x" * 33).decode(), "has 32 bytes, not 33"),
        ("correct-horse-battery", "it is not base64"),
        (f"{ONE.text()} {'!' * 44}", "it is not base64"),
        (" ".join([ONE.text()] * 9), "should be a key"),
        ("ä", "no short text"),
        ("A" * 20_000, "no short text"),
    ],
)
def test_what_is_no_key_is_refused_and_not_quoted(tmp_path, text, why):
    with pytest.raises(Unavailable, match=why) as caught:
        keyring(str(kept(tmp_path / "key", text)), tmp_path, {})
    assert not text.strip() or text[:20] not in caught.value.message


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    for place in (tmp_path / "fifo", tmp_path):
        with pytest.raises(Unavailable, match="it is no file"):
            read_private(place)
    with pytest.raises(Unavailable, match="No such file"):
        keyring(str(tmp_path / "none"), tmp_path, {})


def test_a_seal_opens_with_its_key_and_its_words_only():
    sealed = ONE.seal(b"value", ("acme", "name", 1))
    assert ONE.unseal(sealed, ("acme", "name", 1)) == b"value"
    for key, about in (
        (TWO, ("acme", "name", 1)),
        (ONE, ("acme", "name", 2)),
        (ONE, ("acmen", "ame", 1)),
        (ONE, ("acme", "name", "1")),
    ):
        with pytest.raises(Unsealable):
            key.unseal(sealed, about)
    assert ONE.seal(b"value", ()).nonce != ONE.seal(b"value", ()).nonce
    assert ONE.text() not in repr(ONE)
