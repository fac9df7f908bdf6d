"""The vault in the database: who can open what, what follows a change, what is kept of it."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from flowmonkeyd.errors import Conflict, NotFound, Unavailable
from flowmonkeyd.store import ledger
from flowmonkeyd.store.store import APPLICATION_ID, migrations
from flowmonkeyd.vault import Value, value_of
from flowmonkeyd.vault.keys import OWN_FILE, VARIABLE
from flowmonkeyd.vault.sealed import Key
from tests.vault.parts import opened


async def test_each_tenant_has_its_own_and_sees_no_other_s(tmp_path):
    async with opened(tmp_path) as vault:
        await vault.put("a", "key", Value("of-a"), "me")
        await vault.put("b", "key", Value("of-b"), "me")
        assert await vault.read("a", ["key", "other"]) == {"key": Value("of-a")}
        assert await vault.read("b", ["key"]) == {"key": Value("of-b")}
        assert await vault.read("default", ["key"]) == {}
        await vault.remove("a", "key", "me")
        assert await vault.read("a", ["key"]) == {}
        assert [kept.tenant for kept in await vault.listed(None, 0, 10)] == ["b"]
        with pytest.raises(NotFound, match="no secret 'key' for tenant 'a'"):
            await vault.remove("a", "key", "me")


@pytest.mark.parametrize(
    "value",
    [
        Value("-----BEGIN\nline\n\nEND\n"),
        Value("nul \0 and ünïcode \U0001f412"),
        Value("x" * 65536),
        value_of("n", "AAEC/w==", is_binary=True),
    ],
)
async def test_a_value_comes_back_as_it_was_kept(tmp_path, value):
    async with opened(tmp_path) as vault:
        await vault.put("default", "key", value, "me")
        assert await vault.read("default", ["key"]) == {"key": value}
        assert await vault.read("default", ["key"]) == {"key": value}  # from memory
    async with opened(tmp_path) as vault:
        assert await vault.read("default", ["key"]) == {"key": value}


async def test_a_new_value_is_there_at_once_and_counted(tmp_path):
    async with opened(tmp_path) as vault:
        kept, is_new = await vault.put("default", "key", Value("first"), "me")
        assert (kept.version, is_new) == (1, True)
        await vault.read("default", ["key"])
        kept, is_new = await vault.put("default", "key", Value("second"), "me")
        assert (kept.version, is_new) == (2, False)
        assert (await vault.read("default", ["key"]))["key"].text == "second"


async def test_who_changed_what_is_in_the_ledger_and_no_value(tmp_path):
    async with opened(tmp_path) as vault:
        await vault.put("acme", "key", Value("v4lue"), "uid:7")
        await vault.rotate("uid:8")
        await vault.remove("acme", "key", "uid:9")
        events = await vault.store.read(lambda conn: ledger.read(conn, 0, 100))
    told = [(one["type"], one["data"]) for one in events if one["type"].startswith("secret.")]
    about = {"name": "key", "tenantId": "acme"}
    key_id = told[1][1]["keyId"]
    assert told == [
        ("secret.set", {**about, "by": "uid:7", "version": 1}),
        ("secret.rotated", {"keyId": key_id, "secrets": 1, "by": "uid:8"}),
        ("secret.removed", {**about, "by": "uid:9"}),
    ]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE secrets SET name = 'other' WHERE name = 'key'",
        "UPDATE secrets SET tenant = 'evil'",
        "UPDATE secrets SET version = 2",
        "UPDATE secrets SET is_binary = 1",
        "UPDATE secrets SET sealed = zeroblob(length(sealed))",
        "UPDATE secrets SET nonce = zeroblob(12)",
    ],
)
async def test_a_row_that_was_changed_in_the_database_does_not_open(tmp_path, change):
    async with opened(tmp_path) as vault:
        await vault.put("default", "key", Value("v4lue"), "me")
    with sqlite3.connect(tmp_path / "fm.db") as conn:
        conn.execute(change)
    conn.close()
    async with opened(tmp_path) as vault:
        tenant = "evil" if "tenant" in change else "default"
        with pytest.raises(Unavailable, match="cannot open the secret") as caught:
            await vault.read(tenant, ["key", "other"])
        assert caught.value.code == "SECRET_UNAVAILABLE"
        assert "v4lue" not in caught.value.message


async def test_without_its_key_a_secret_is_refused_until_it_is_set_anew(tmp_path, caplog):
    async with opened(tmp_path) as vault:
        await vault.put("default", "key", Value("v4lue"), "me")
    (tmp_path / OWN_FILE).rename(tmp_path / "gone")
    async with opened(tmp_path) as vault:
        assert "a key that the vault does not have" in caplog.text
        with pytest.raises(Unavailable, match="which the file"):
            await vault.read("default", ["key"])
        # A new key would hide that the old one is missed.
        with pytest.raises(Unavailable, match="is gone; bring it back, or remove them all"):
            await vault.put("default", "another", Value("v4lue"), "me")
    environ = {VARIABLE: Key.new().text()}
    async with opened(tmp_path, environ) as vault:
        with pytest.raises(Unavailable):
            await vault.read("default", ["key"])
        await vault.put("default", "key", Value("n3w"), "me")
        assert (await vault.read("default", ["key"]))["key"].text == "n3w"


async def test_a_new_key_put_before_the_old_one_takes_over_at_the_next_start(tmp_path):
    old, new = Key.new(), Key.new()
    async with opened(tmp_path, {VARIABLE: old.text()}) as vault:
        await vault.put("default", "key", Value("v4lue"), "me")
        with pytest.raises(Conflict, match="the vault's key comes from the variable"):
            await vault.rotate("me")
    async with opened(tmp_path, {VARIABLE: f"{new.text()} {old.text()}"}) as vault:
        assert (await vault.read("default", ["key"]))["key"].text == "v4lue"
    async with opened(tmp_path, {VARIABLE: new.text()}) as vault:
        assert (await vault.read("default", ["key"]))["key"].text == "v4lue"


async def test_a_rotation_leaves_what_it_cannot_open_and_the_key_that_is_not_missed(tmp_path):
    async with opened(tmp_path) as vault:
        for number in range(20):
            await vault.put("default", f"key{number}", Value(f"v4lue{number}"), "me")
        before = (tmp_path / OWN_FILE).read_text()
        key_id, count = await vault.rotate("me")
        assert count == 20
        after = (tmp_path / OWN_FILE).read_text()
        assert before not in after
        assert Key.parse(after.strip()).id == key_id
        names = [f"key{number}" for number in range(20)]
        values = await vault.read("default", names)
        assert [values[name].text for name in names] == [f"v4lue{n}" for n in range(20)]


async def test_a_write_during_a_rotation_opens_after_it(tmp_path):
    async with opened(tmp_path) as vault:
        await vault.put("default", "key", Value("v4lue"), "me")
        async with asyncio.TaskGroup() as group:
            for number in range(60):
                value = Value(f"v4lue{number}")
                group.create_task(vault.put("default", f"key{number}", value, "me"))
                if number % 20 == 0:
                    group.create_task(vault.rotate("me"))
    async with opened(tmp_path) as vault:
        for number in range(60):
            read = await vault.read("default", [f"key{number}"])
            assert read[f"key{number}"].text == f"v4lue{number}"
        assert len((tmp_path / OWN_FILE).read_text().split()) == 1


async def test_a_database_of_the_first_version_gets_its_vault(tmp_path):
    _, name, sql = migrations()[0]
    assert name == "0001_initial.sql"
    old = sqlite3.connect(tmp_path / "fm.db")
    old.executescript(f"{sql}; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1")
    old.close()
    async with opened(tmp_path) as vault:
        await vault.put("default", "key", Value("v4lue"), "me")
        assert (await vault.read("default", ["key"]))["key"].text == "v4lue"
