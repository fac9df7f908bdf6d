"""Keys on disk and packages signed with them: `flowctl key` and `flowctl handler sign` for real."""

from __future__ import annotations

import json
import os
import stat

import pytest

from flowctl import keyfiles
from flowctl.problems import Rejected
from flowmonkeyd.documents.archive import SIGNATURE, pack_files, read_archive
from flowmonkeyd.documents.signing import parse_public, signature_of, verify
from tests.api.api_server import served
from tests.api.flowctl_server import flowctl
from tests.signing.parts import built, package


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config" / "flowmonkey" / "keys"


@pytest.fixture
def afh(home, tmp_path):
    path = tmp_path / "echo.afh"
    path.write_bytes(package(built()))
    return path


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def said(result, code, *words):
    assert (result.code, result.out) == (code, ""), result
    for word in words:
        assert word in result.err


def test_a_new_key_is_its_owner_s_alone_whatever_the_umask(home):
    before = os.umask(0)
    try:
        made = json.loads(flowctl("key", "new", "acme", "-o", "json").out)
    finally:
        os.umask(before)
    assert (mode(home), mode(home / "acme.key"), mode(home / "acme.pub")) == (0o700, 0o600, 0o644)
    public, name = parse_public((home / "acme.pub").read_text())
    assert (public.id, public.line(name)) == (made["id"], made["key"] + "\n")
    assert keyfiles.private("acme").public == public
    assert (home / "acme.key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")


def test_a_key_is_never_overwritten(home):
    assert flowctl("key", "new", "acme").code == 0
    before = (home / "acme.key").read_bytes()
    said(flowctl("key", "new", "acme"), 5, "acme.key exists; choose another name")
    assert (home / "acme.key").read_bytes() == before
    (home / "dangling.key").symlink_to("/nowhere")
    said(flowctl("key", "new", "dangling"), 5, "exists")


@pytest.mark.parametrize("name", ["../evil", ".hidden", "a b", "x" * 65, ""])
def test_a_name_that_is_none_makes_nothing(home, name):
    said(flowctl("key", "new", name), 5, "its name should be letters")
    assert not home.exists()


def test_a_signed_package_is_the_same_with_a_signature(home, afh):
    flowctl("key", "new", "acme")
    unsigned = read_archive(afh.read_bytes())
    result = flowctl("handler", "sign", "echo.afh", "--key", "acme", "--comment", "release 1")
    key = keyfiles.private("acme").public
    assert (result.code, result.out) == (0, f"echo.afh: acme/echo@1.0.0, signed with {key.id}\n")
    files = read_archive(afh.read_bytes())
    signature = signature_of(files)
    verify(files, signature, key)
    assert signature.comment == "release 1"
    assert {name: data for name, data in files.items() if name != SIGNATURE} == unsigned
    first = afh.read_bytes()
    flowctl("handler", "sign", "echo.afh", "--key", "acme", "--comment", "release 1")
    assert afh.read_bytes() == first, "Ed25519 has no randomness: the same again is the same file"


def test_another_signs_in_place_of_the_first_and_it_is_said(home, afh):
    first, _ = keyfiles.make("acme")
    second, _ = keyfiles.make("labs")
    flowctl("handler", "sign", "echo.afh", "--key", "acme")
    result = flowctl("handler", "sign", "echo.afh", "--key", "labs", "--to", "other.afh")
    assert (result.code, result.err) == (0, f"it was signed with {first}\n")
    assert signature_of(read_archive(afh.read_bytes())).key_id == first
    other = afh.with_name("other.afh")
    assert signature_of(read_archive(other.read_bytes())).key_id == second
    assert sorted(path.name for path in afh.parent.iterdir()) == ["config", "echo.afh", "other.afh"]


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o666, 0o610])
def test_a_key_that_others_have_access_to_is_refused(home, afh, bits):
    keyfiles.make("acme")
    (home / "acme.key").chmod(bits)
    before = afh.read_bytes()
    result = flowctl("handler", "sign", "echo.afh", "--key", "acme")
    said(result, 5, f"others have access to it (mode {bits:04o}); `chmod 600` it")
    assert "PRIVATE" not in result.err
    by_path = flowctl("handler", "sign", "echo.afh", "--key", str(home / "acme.key"))
    said(by_path, 5, "others have access")
    assert afh.read_bytes() == before


@pytest.mark.parametrize("bits", [0o755, 0o750, 0o777, 0o711])
def test_a_folder_of_keys_that_others_can_enter_is_refused(home, afh, bits):
    keyfiles.make("acme")
    home.chmod(bits)
    said(flowctl("handler", "sign", "echo.afh", "--key", "acme"), 5, "`chmod 700` it")
    said(flowctl("key", "new", "other"), 5, "`chmod 700` it")
    assert not (home / "other.key").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_somebody_else_s_key_is_refused(home, afh):
    keyfiles.make("acme")
    os.chown(home / "acme.key", 65534, 65534)
    said(flowctl("handler", "sign", "echo.afh", "--key", "acme"), 5, "it belongs to uid 65534")


def test_what_is_no_key_file_is_refused_without_waiting(home, afh):
    keyfiles.make("acme")
    (home / "link.key").symlink_to(home / "acme.key")
    os.mkfifo(home / "pipe.key", 0o600)
    (home / "folder.key").mkdir(0o700)
    (home / "text.key").touch(0o600)
    (home / "text.key").write_text("secret words")
    for name, words in (
        ("link", "too many levels of symbolic links"),
        ("pipe", "it is not a regular file"),
        ("folder", "it is not a regular file"),
        ("text", "it is not PEM, or is encrypted"),
        ("none", "make it with `flowctl key new`"),
    ):
        result = flowctl("handler", "sign", "echo.afh", "--key", name)
        said(result, 5, words)
        assert "secret words" not in result.err


def test_what_is_no_built_package_is_not_signed(home, afh, tmp_path):
    keyfiles.make("acme")
    folder = tmp_path / "folder"
    folder.mkdir()
    said(flowctl("handler", "sign", "folder", "--key", "acme"), 5, "it is a folder; build it")
    plain = {
        "handler.json": b'{"handler": {"type": "a", "version": "1.0.0"}}',
        "handler.py": b"def handle(input, ctx): ...\n",
    }
    afh.write_bytes(pack_files(plain))
    said(flowctl("handler", "sign", "echo.afh", "--key", "acme"), 5, "it was not built")
    good = package(built())
    afh.write_bytes(good[:-30] + bytes([good[-30] ^ 1]) + good[-29:])
    said(flowctl("handler", "sign", "echo.afh", "--key", "acme"), 5, "cannot read the package")
    afh.write_bytes(good)
    two = flowctl("handler", "sign", "echo.afh", "--key", "acme", "--comment", "a\nb")
    said(two, 5, "one line")
    nowhere = flowctl("handler", "sign", "echo.afh", "--key", "acme", "--to", "no/such/x.afh")
    said(nowhere, 5, "cannot write")


def test_one_s_own_keys_are_listed_and_found_by_name(home, tmp_path):
    key_id, shown = keyfiles.make("acme")
    (home / "broken.pub").write_text("nothing")
    rows = json.loads(flowctl("key", "list", "--own", "-o", "json").out)["items"]
    line = shown.read_text().strip()
    assert rows == [
        {"name": "acme", "id": key_id, "key": line.removesuffix(" acme"), "file": str(shown)}
    ]
    assert flowctl("key", "list", "--own").out.splitlines()[1].split()[:2] == ["acme", key_id]
    assert keyfiles.public("acme") == keyfiles.public(str(shown)) == keyfiles.public(line) == line
    with pytest.raises(Rejected, match="no such file"):
        keyfiles.public("nobody")


async def test_the_way_of_a_package_from_a_key_to_a_trusted_version(home, afh, tmp_path):
    """All commands as a person gives them, to a daemon's real API."""
    import asyncio

    (tmp_path / "d").mkdir()
    async with served(tmp_path / "d", handlers__requireSignature="true") as api:

        async def run(*args):
            return await asyncio.to_thread(flowctl, "--socket", str(api.socket), *args)

        flowctl("key", "new", "acme")
        unsigned = await run("handler", "publish", "echo.afh")
        said(unsigned, 5, "(SIGNATURE_REQUIRED)")
        flowctl("handler", "sign", "echo.afh", "--key", "acme", "--comment", "first")
        said(await run("handler", "publish", "echo.afh"), 5, "(PUBLISHER_NOT_TRUSTED)")
        key_id = keyfiles.private("acme").public.id
        assert (await run("key", "trust", "acme")).out == f"{key_id}: trusted as acme\n"
        assert (await run("key", "trust", "acme")).out == f"{key_id}: trusted already as acme\n"
        assert (await run("handler", "publish", "echo.afh")).out == (
            "acme/echo@1.0.0: published, signed by acme\n"
        )
        await run("handler", "deprecate", "acme/echo@1.0.0", "use 2.0.0")
        shown = (await run("handler", "show", "acme/echo@1.0.0")).out
        lines = shown.partition("manifest\n")[0].splitlines()
        facts = {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in lines}
        assert facts["publisher"] == "acme"
        assert facts["signature"] == f"trusted: signed by acme with the key {key_id}"
        assert facts["signed comment"] == "first"
        assert facts["deprecated"] == "use 2.0.0"
        assert len(facts["digest"]) == 64
        assert [line for line in lines if line.startswith("  ")] == [
            "  may not reach the network",
            "  may read no secrets",
            "  may read its own package, and write nothing",
            "  512 MiB, 1 core, 30 s",
            "  pillow 11.0.0 (MIT-CMU)",
            "  @acme/x 1.0.0 (MIT)",
        ]
        revoked = await run("key", "revoke", key_id, "--reason", "lost")
        assert revoked.out == f"{key_id}: revoked\n"
        shown = (await run("handler", "show", "acme/echo@1.0.0")).out
        assert f"revoked: the key {key_id} was revoked: lost" in shown
        assert "lost" in (await run("key", "list")).out
