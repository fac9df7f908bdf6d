"""Secrets on a server elsewhere: a real OpenBao with real TLS, tokens, roles and policies."""

from __future__ import annotations

import json
import socket

import pytest
from pydantic import ValidationError

from flowctl.client import Client
from flowmonkeyd.errors import Conflict, Unavailable
from flowmonkeyd.settings import HashicorpSection
from flowmonkeyd.vault import Value
from flowmonkeyd.vault.hashicorp import Hashicorp
from tests.system.conftest import RunningDaemon
from tests.vault.parts import private
from tests.vault.tellers import folder

pytestmark = pytest.mark.slow  # the server takes a second to start
POLICY = 'path "secret/data/flowmonkey/*" { capabilities = ["read"] }'


@pytest.fixture
async def vault(bao, tmp_path):
    vault = Hashicorp(bao.settings(tmp_path))
    await vault.open()
    yield vault
    await vault.close()


@pytest.fixture
def root(bao):
    client = bao.client()
    yield client
    client.adapter.close()


async def test_a_tenant_s_text_and_bytes_are_read_and_no_other_s(bao, vault):
    bao.put("acme", "text", value="line\nlïne")
    bao.put("acme", "bytes", base64="AAEC/w==")
    bao.put("other", "text", value="of another")
    names = ["text", "bytes", "none"]
    read = {"text": Value("line\nlïne"), "bytes": Value("AAEC/w==", is_binary=True)}
    assert await vault.read("acme", names) == read
    assert await vault.read("acme", names) == read  # from memory
    assert await vault.read("default", names) == {}


@pytest.mark.parametrize("tenant", ["a/b", "with space", "päss", "q?x=1#y", "%2e%2e", "50%"])
async def test_a_tenant_s_name_is_only_a_name(bao, vault, tenant):
    bao.put(tenant, "key", value="of-it-alone")
    assert await vault.read(tenant, ["key"]) == {"key": Value("of-it-alone")}


@pytest.mark.parametrize("tenant", ["..", "../other", "a/../other", ".", "", "/other", "other/"])
async def test_a_tenant_leads_nowhere_else(bao, vault, tenant):
    bao.put("other", "text", value="of another")
    assert await vault.read(tenant, ["text"]) == {}
    assert await vault.read("acme", ["../other/text", "..", "a/b"]) == {}


async def test_a_deleted_secret_is_gone_when_memory_forgets_it(bao, tmp_path, root):
    bao.put("acme", "gone", value="v4lue")
    asking = Hashicorp(bao.settings(tmp_path, cacheMs=0))
    remembering = Hashicorp(bao.settings(tmp_path))
    for vault in (asking, remembering):
        assert "gone" in await vault.read("acme", ["gone"])
    root.secrets.kv.v2.delete_latest_version_of_secret("flowmonkey/acme/gone")
    assert await asking.read("acme", ["gone"]) == {}
    assert "gone" in await remembering.read("acme", ["gone"])
    assert "v4lue" not in repr(vars(remembering))
    bao.put("acme", "gone", value="another")
    assert await asking.read("acme", ["gone"]) == {"gone": Value("another")}
    for vault in (asking, remembering):
        await vault.close()


@pytest.mark.parametrize(
    "fields", [{"other": "x"}, {"value": 12345}, {"value": "abc"}, {"base64": "!"}]
)
async def test_what_is_no_value_is_refused_and_not_quoted(bao, vault, fields):
    bao.put("acme", "strange", **fields)
    with pytest.raises(Unavailable, match="cannot use the secret 'strange'") as caught:
        await vault.read("acme", ["strange"])
    assert caught.value.code == "SECRET_UNAVAILABLE"
    assert not any(repr(value) in caught.value.message for value in fields.values())


async def test_a_role_logs_in_and_again_when_its_token_ends(bao, tmp_path, root):
    if "approle/" not in root.sys.list_auth_methods()["data"]:
        root.sys.enable_auth_method("approle")
    root.sys.create_or_update_policy("reader", POLICY)
    root.auth.approle.create_or_update_approle("monkey", token_policies=["reader"])
    role_id = root.auth.approle.read_role_id("monkey")["data"]["role_id"]
    secret_id = root.auth.approle.generate_secret_id("monkey")["data"]["secret_id"]
    file = private(tmp_path / "secret-id", f"{secret_id}\n")
    bao.put("acme", "text", value="for the role")
    vault = Hashicorp(bao.settings(tmp_path, roleId=role_id, secretIdFile=str(file), cacheMs=0))
    await vault.open()
    for _ in range(2):
        assert await vault.read("acme", ["text"]) == {"text": Value("for the role")}
        # Every token of the role's ends.
        root.sys.revoke_prefix("auth/approle/login")
    private(file, "not-a-secret-id")
    with pytest.raises(Unavailable, match="answered with InvalidRequest") as caught:
        await vault.read("acme", ["text"])
    assert "not-a-secret-id" not in caught.value.message
    await vault.close()


async def test_a_new_token_in_the_file_is_taken_when_the_old_one_ends(bao, tmp_path, root):
    root.sys.create_or_update_policy("reader", POLICY)
    tokens = [root.auth.token.create(policies=["reader"])["auth"]["client_token"] for _ in "ab"]
    file = private(tmp_path / "token", tokens[0])
    bao.put("acme", "text", value="by token")
    vault = Hashicorp(bao.settings(tmp_path, tokenFile=str(file), cacheMs=0))
    assert "text" in await vault.read("acme", ["text"])
    root.auth.token.revoke(tokens[0])
    with pytest.raises(Unavailable, match="answered with Forbidden"):
        await vault.read("acme", ["text"])
    private(file, tokens[1])
    assert "text" in await vault.read("acme", ["text"])
    await vault.close()


async def test_a_namespace_is_another_world(bao, tmp_path, root):
    root.sys.create_namespace("team")
    inner = bao.client(namespace="team")
    inner.sys.enable_secrets_engine("kv", path="mine", options={"version": "2"})
    inner.secrets.kv.v2.create_or_update_secret(
        "fm/acme/text", {"value": "ours"}, mount_point="mine"
    )
    inner.adapter.close()
    more = {"namespace": "team", "mount": "mine", "path": "fm/{tenant}/{name}"}
    vault = Hashicorp(bao.settings(tmp_path, **more))
    assert await vault.read("acme", ["text"]) == {"text": Value("ours")}
    await vault.close()


async def test_a_server_with_another_s_certificate_is_not_asked(bao, tmp_path, monkeypatch):
    # Neither the system's authorities nor one that the environment names vouch for it.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bao.ca))
    monkeypatch.setenv("VAULT_CACERT", str(bao.ca))
    vault = Hashicorp(bao.settings(tmp_path).model_copy(update={"caFile": ""}))
    with pytest.raises(Unavailable, match="SSLError") as caught:
        await vault.read("acme", ["text"])
    assert caught.value.code == "SECRET_UNAVAILABLE"
    await vault.close()


async def test_a_server_that_does_not_answer_is_waited_for_so_long(bao, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"https://127.0.0.1:{silent.getsockname()[1]}"
        settings = bao.settings(tmp_path, timeoutMs=100)
        vault = Hashicorp(settings.model_copy(update={"address": address}))
        with pytest.raises(Unavailable, match="Timeout"):
            await vault.read("acme", ["text"])
        await vault.close()


async def test_it_is_read_and_never_written(vault):
    for asked in (
        vault.put("acme", "n", Value("v4lue"), "me"),
        vault.remove("acme", "n", "me"),
        vault.listed(None, 0, 10),
        vault.rotate("me"),
    ):
        with pytest.raises(Conflict, match="cannot manage secrets here: they are kept at https:"):
            await asked


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, "set vault.hashicorp.address, and either tokenFile or both"),
        ({"tokenFile": ""}, "either tokenFile or both"),
        ({"roleId": "x", "secretIdFile": "y"}, "either tokenFile or both"),
        ({"roleId": "x", "tokenFile": ""}, "either tokenFile or both"),
    ],
)
async def test_it_is_refused_at_the_start_without_what_it_needs(tmp_path, said, why):
    token = private(tmp_path / "token", "root")
    start = {"tokenFile": str(token)} | ({"address": "https://127.0.0.1:1"} if said else {})
    with pytest.raises(Unavailable, match=why):
        await Hashicorp(HashicorpSection(**{**start, **said})).open()


async def test_a_token_that_others_can_read_is_refused_at_the_start(bao, tmp_path):
    settings = bao.settings(tmp_path)
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(Unavailable, match="chmod 600"):
        await Hashicorp(settings).open()


@pytest.mark.parametrize(
    ("field", "text", "why"),
    [
        ("address", "http://vault.example.com:8200", "in clear"),
        ("address", "http://127.0.0.1.example.com", "in clear"),
        ("address", "ftp://x", "should be like"),
        ("address", "https://u:p@x", "scheme, host and port only"),
        ("address", "https://x/v1", "scheme, host and port only"),
        ("address", "https://x:99999", "should be like"),
        ("path", "flowmonkey/{name}", "each once"),
        ("path", "{tenant}/{tenant}/{name}", "each once"),
        ("path", "/{tenant}/{name}", "single slashes"),
        ("path", "../{tenant}/{name}", "single slashes"),
        ("path", "{tenant}/{name}/{other}", "each once"),
    ],
)
def test_a_setting_that_would_betray_is_refused(field, text, why):
    with pytest.raises(ValidationError, match=why):
        HashicorpSection(**{field: text})


@pytest.mark.parametrize("address", ["http://127.0.0.1:8200", "http://[::1]:8200", "https://x"])
def test_this_machine_needs_no_tls(address):
    assert HashicorpSection(address=address).address == address


def test_the_daemon_hands_out_what_is_elsewhere(bao, tmp_path_factory, tmp_path):
    for name in ("token", "pem", "pin"):
        bao.put("default", name, value=f"v4lue-of-{name}")
    bao.put("default", "seed", base64="AAECAwQFBgc=")
    token = private(tmp_path / "token", "root")
    place = f"vault.hashicorp.address={bao.address}"
    keys = ("vault.provider=hashicorp", place, f"vault.hashicorp.caFile={bao.ca}")
    flags = [*keys, f"vault.hashicorp.tokenFile={token}"]
    daemon = RunningDaemon(tmp_path_factory.mktemp("fm"))
    daemon.start(*(word for flag in flags for word in ("--set", flag)))
    try:
        published = daemon.flowctl("handler", "publish", str(folder(tmp_path / "python", "python")))
        assert published.returncode == 0, published.stderr
        listed = daemon.flowctl("secret", "list")
        assert (listed.returncode, "do it there" in listed.stderr) == (5, True)
        client = Client(str(daemon.socket), 60.0)
        step = {"id": "a", "type": "tell/python", "config": {}, "outputKey": "said"}
        step["input"] = {"type": "static", "value": {"how": "fail"}}
        flow = {"id": "f", "version": "1.0.0", "initialStepId": "a", "steps": {"a": step}}
        client.send("PUT", "/v1/flows", flow)
        body = {"flow": "f", "context": {}}
        run = client.send("POST", "/v1/executions?waitMs=60000", body).fields()
        assert run["error"]["code"] == "NO [secret token]"
        assert "v4lue" not in json.dumps(run)
        events = client.pages(f"/v1/executions/{run['id']}/events", {}).items
        (read,) = [one["data"] for one in events if one["type"] == "secret.read"]
        assert read["provider"] == "hashicorp"
    finally:
        daemon.stop()
