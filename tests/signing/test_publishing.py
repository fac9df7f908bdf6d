"""Whose packages a daemon publishes: signatures, keys, namespaces; the real API on a real store."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

from flowmonkeyd.documents.archive import MANIFEST, SIGNATURE, pack_files
from flowmonkeyd.documents.signing import PrivateKey, sign
from flowmonkeyd.errors import Invalid
from flowmonkeyd.model import Signed
from tests.api.api_server import served
from tests.signing.parts import ACME, EVIL, built, package

ZIP = {"content-type": "application/zip"}
FOLDER = {
    MANIFEST: json.dumps({"handler": {"type": "acme/echo", "version": "1.0.0"}}).encode(),
    "handler.py": b"def handle(input, ctx):\n    return input\n",
}


@pytest.fixture
async def api(tmp_path):
    async with served(tmp_path) as api:
        yield api


@pytest.fixture
async def strict(tmp_path):
    roots = ACME.public.line("acme").strip()
    async with served(tmp_path, handlers__requireSignature="true", trust__keys=roots) as api:
        yield api


async def publish(api, data):
    return await api.call("PUT", "/v1/handlers", data, ZIP)


async def trusted(api, key, publisher):
    answer = await api.call("PUT", "/v1/keys", {"key": key.public.text, "publisher": publisher})
    assert answer.status in (200, 201), answer.json


async def shown(api, name="acme/echo/1.0.0"):
    answer = await api.call("GET", f"/v1/handlers/{name}")
    assert answer.status == 200, answer.json
    return answer.json


def refused(answer, status, code, *words):
    assert (answer.status, answer.json["code"]) == (status, code), answer.json
    for word in words:
        assert word in answer.json["detail"]


async def nothing_there(api):
    assert (await api.call("GET", "/v1/handlers")).json["items"] == []
    assert os.listdir(api.directory / "packages") == []


async def test_without_requirements_a_folder_is_published_and_shown_as_unsigned(api):
    assert (await publish(api, pack_files(FOLDER))).status == 201
    found = await shown(api)
    assert found["signature"]["status"] == "unsigned"
    assert (found["publisher"], found["keyId"], found["sbom"]) == (None, None, None)


async def test_a_trusted_publisher_s_package_is_published_and_shown_as_hers(api):
    await trusted(api, ACME, "acme")
    first = await publish(api, package(built(), ACME, "release 1"))
    assert first.status == 201
    assert (first.json["publisher"], first.json["keyId"]) == ("acme", ACME.public.id)
    found = await shown(api)
    reason = f"signed by acme with the key {ACME.public.id}"
    assert found["signature"] == {"status": "trusted", "reason": reason, "comment": "release 1"}
    assert found["sbom"]["components"] == [
        {"name": "pillow", "version": "11.0.0", "licenses": ["MIT-CMU"]},
        {"name": "@acme/x", "version": "1.0.0", "licenses": ["MIT"]},
    ]


@pytest.mark.parametrize("data", [pack_files(FOLDER), package(built())])
async def test_an_unsigned_package_is_refused_where_signatures_are_required(strict, data):
    answer = await publish(strict, data)
    refused(answer, 422, "SIGNATURE_REQUIRED", "acme/echo@1.0.0: it is not signed", "handler sign")
    await nothing_there(strict)


async def test_a_root_of_the_configuration_is_trusted(strict):
    assert (await publish(strict, package(built(), ACME))).status == 201
    assert (await shown(strict))["signature"]["status"] == "trusted"
    (key,) = (await strict.call("GET", "/v1/keys")).json["items"]
    assert (key["source"], key["publisher"], key["trustedAt"]) == ("configuration", "acme", None)


@pytest.mark.parametrize("required", ["true", "false"])
async def test_a_key_nobody_trusts_publishes_nothing(tmp_path, required):
    """Also where unsigned packages are welcome: who claims a signer must be that signer's."""
    async with served(tmp_path, handlers__requireSignature=required) as api:
        answer = await publish(api, package(built(), EVIL))
        refused(answer, 422, "PUBLISHER_NOT_TRUSTED", EVIL.public.id, "flowctl key trust")
        await nothing_there(api)


@pytest.mark.parametrize("required", ["true", "false"])
async def test_a_package_changed_after_it_was_signed_is_refused(tmp_path, required):
    signature = sign(built(), ACME)
    changed = built(code=b"def handle(input, ctx):\n    return 'evil'\n")
    async with served(tmp_path, handlers__requireSignature=required) as api:
        await trusted(api, ACME, "acme")
        answer = await publish(api, pack_files({**changed, SIGNATURE: signature}))
        refused(answer, 422, "SIGNATURE_INVALID", "did not sign this handler.json")
        await nothing_there(api)


async def test_a_signature_that_names_another_key_is_refused(strict):
    files = built()
    document = json.loads(sign(files, EVIL))
    document["keyId"] = ACME.public.id
    forged = pack_files({**files, SIGNATURE: json.dumps(document).encode()})
    refused(await publish(strict, forged), 422, "SIGNATURE_INVALID")
    await nothing_there(strict)


async def test_a_revoked_key_publishes_nothing_more_and_never_comes_back(strict):
    await publish(strict, package(built(), ACME))
    path = f"/v1/keys/{ACME.public.id}/revoke"
    gone = await strict.call("POST", path, {"reason": "laptop stolen"})
    assert (gone.status, gone.json["reason"]) == (200, "laptop stolen")
    first = gone.json["revokedAt"]
    again = await strict.call("POST", path, {"reason": "other"})
    assert (again.json["revokedAt"], again.json["reason"]) == (first, "laptop stolen")
    answer = await publish(strict, package(built(version="1.1.0"), ACME))
    refused(answer, 422, "PUBLISHER_NOT_TRUSTED", "was revoked (laptop stolen)")
    back = await strict.call("PUT", "/v1/keys", {"key": ACME.public.line("acme")})
    refused(back, 409, "CONFLICT", "a revoked key never comes back")
    found = (await shown(strict))["signature"]
    assert (found["status"], "laptop stolen" in found["reason"]) == ("revoked", True)


async def test_a_key_revoked_between_the_check_and_the_commit_publishes_nothing(api):
    await trusted(api, ACME, "acme")
    await api.call("POST", f"/v1/keys/{ACME.public.id}/revoke", {})
    signed = Signed("acme", ACME.public.id, "{}")
    with pytest.raises(Invalid, match="has just been revoked"):
        await api.engine.publish("acme/x", "1.0.0", "d", "{}", 1, None, signed)
    assert (await api.call("GET", "/v1/namespaces")).json["items"] == []


async def test_a_namespace_is_its_first_signer_s(api):
    await trusted(api, ACME, "acme")
    await trusted(api, EVIL, "evil")
    assert (await publish(api, package(built(), ACME))).status == 201
    for type_ in ("acme/other", "Acme/Other", "acme"):
        answer = await publish(api, package(built(type_), EVIL))
        refused(answer, 409, "NAMESPACE_TAKEN", "belongs to the publisher 'acme'", "by 'evil'")
        answer = await publish(api, package(built(type_)))
        refused(answer, 409, "NAMESPACE_TAKEN", "the package is not signed")
    assert [row["version"] for row in (await api.call("GET", "/v1/handlers")).json["items"]] == [
        "1.0.0"
    ]
    assert (await publish(api, package(built("evil/x"), EVIL))).status == 201
    found = (await api.call("GET", "/v1/namespaces")).json["items"]
    assert [(one["name"], one["publisher"]) for one in found] == [
        ("acme", "acme"),
        ("evil", "evil"),
    ]


async def test_unsigned_packages_bind_no_namespace(api):
    assert (await publish(api, pack_files(FOLDER))).status == 201
    await trusted(api, ACME, "acme")
    assert (await publish(api, package(built(version="2.0.0"), ACME))).status == 201


async def test_a_publisher_s_second_key_is_as_good_as_the_first(api):
    new = PrivateKey.new()
    await trusted(api, ACME, "acme")
    await publish(api, package(built(), ACME))
    await trusted(api, new, "acme")
    await api.call("POST", f"/v1/keys/{ACME.public.id}/revoke", {"reason": "renewed"})
    assert (await publish(api, package(built(version="1.1.0"), new))).status == 201


async def test_a_namespace_can_be_handed_over(api):
    await trusted(api, ACME, "acme")
    await trusted(api, EVIL, "labs")
    await publish(api, package(built(), ACME))
    given = await api.call("PUT", "/v1/namespaces/acme", {"publisher": "labs"})
    assert given.json == {"name": "acme", "publisher": "labs", "before": "acme"}
    assert (await publish(api, package(built(version="2.0.0"), EVIL))).status == 201
    refused(await publish(api, package(built(version="3.0.0"), ACME)), 409, "NAMESPACE_TAKEN")
    await api.call("PUT", "/v1/namespaces/acme", {"publisher": None})
    assert (await publish(api, package(built(version="3.0.0"), ACME))).status == 201


async def test_the_same_content_may_be_signed_later_and_once(api):
    files = built()
    first = await publish(api, package(files))
    await trusted(api, ACME, "acme")
    again = await publish(api, package(files, ACME))
    assert (first.status, again.status, again.json["created"]) == (201, 200, False)
    assert first.json["digest"] == again.json["digest"]
    assert (await shown(api))["signature"]["status"] == "trusted"
    assert (await publish(api, package(files))).json["publisher"] == "acme"
    rows = (await api.call("GET", "/v1/events")).json["items"]
    types = [row["type"] for row in rows if row["type"].startswith(("handler.", "key."))]
    assert types == ["handler.published", "key.trusted", "handler.signed"]


async def test_other_content_is_refused_whoever_signed_it(api):
    await trusted(api, ACME, "acme")
    await publish(api, package(built(), ACME))
    other = built(code=b"def handle(input, ctx):\n    return 2\n")
    refused(await publish(api, package(other, ACME)), 409, "CONFLICT", "exists with other content")


async def test_what_was_changed_on_disk_is_shown_as_invalid(api):
    await trusted(api, ACME, "acme")
    digest = (await publish(api, package(built(), ACME))).json["digest"]
    place = api.directory / "packages" / digest / MANIFEST
    place.chmod(0o644)
    place.write_bytes(place.read_bytes().replace(b"acme/echo", b"acme/evil"))
    found = (await shown(api))["signature"]
    assert found["status"] == "invalid"
    assert not (place.parent / SIGNATURE).exists()


@pytest.mark.parametrize(
    "sbom", [b"[]", b'{"bomFormat": "SPDX"}', b'{"bomFormat": "CycloneDX", "components": [{}]}']
)
async def test_a_list_of_parts_that_cannot_be_read_is_refused(api, sbom):
    refused(await publish(api, package(built(sbom=sbom))), 422, "INVALID")
    await nothing_there(api)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"key": "ed25519:AAAA acme"}, 422, "cannot read the public key"),
        ({"key": ACME.public.text}, 422, "it has no name"),
        ({"key": ACME.public.text, "publisher": "a/b"}, 422, "$.publisher"),
        ({"key": ACME.public.text, "publisher": "evil"}, 422, "trust.keys says"),
        ({}, 422, "$.key"),
    ],
)
async def test_a_key_that_is_none_is_not_trusted(strict, body, status, word):
    answer = await strict.call("PUT", "/v1/keys", body)
    assert (answer.status, word in answer.json["detail"]) == (status, True), answer.json
    assert len((await strict.call("GET", "/v1/keys")).json["items"]) == 1


async def test_a_key_has_one_publisher(api):
    await trusted(api, ACME, "acme")
    answer = await api.call("PUT", "/v1/keys", {"key": ACME.public.text, "publisher": "evil"})
    refused(answer, 409, "CONFLICT", "trusted as 'acme'")
    missing = await api.call("POST", "/v1/keys/0000000000000000/revoke", {})
    refused(missing, 404, "NOT_FOUND", "flowctl key list")


# A stranger's whole program: a request for each line of (method, path, body), a status each.
STRANGER = """
import http.client, json, os, socket, sys
assert os.geteuid() == 65534
for method, path, body in json.load(sys.stdin):
    connection = http.client.HTTPConnection("x")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(f"/proc/self/fd/{sys.argv[1]}/s.sock")
    connection.request(method, path, json.dumps(body))
    answer = connection.getresponse()
    print(answer.status, json.loads(answer.read()).get("code"))
    connection.close()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_who_may_connect_may_not_decide_whom_to_trust(strict):
    asked = [
        ("GET", "/v1/keys", None),
        ("PUT", "/v1/keys", {"key": EVIL.public.line("acme")}),
        ("POST", f"/v1/keys/{ACME.public.id}/revoke", {}),
        ("PUT", "/v1/namespaces/acme", {"publisher": "evil"}),
    ]
    strict.socket.chmod(0o666)
    place = os.open(strict.directory, os.O_PATH)  # the folders above are closed to strangers
    strict.directory.chmod(0o711)
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys._base_executable, "-I", "-c", STRANGER, str(place)],
            input=json.dumps(asked),
            text=True,
            capture_output=True,
            check=True,
            user=65534,
            pass_fds=[place],
        )
    finally:
        os.close(place)
    assert done.stdout.splitlines() == ["200 None", *["403 FORBIDDEN"] * 3]
    (key,) = (await strict.call("GET", "/v1/keys")).json["items"]
    assert (key["id"], key["revokedAt"]) == (ACME.public.id, None)


async def test_lists_of_keys_and_namespaces_have_pages(api):
    for number in range(3):
        key = PrivateKey.new()
        await trusted(api, key, f"p{number}")
        await publish(api, package(built(f"n{number}/x"), key))
    for path, field in (("/v1/keys", "publisher"), ("/v1/namespaces", "name")):
        one = (await api.call("GET", f"{path}?limit=2")).json
        two = (await api.call("GET", f"{path}?limit=2&cursor={one['nextCursor']}")).json
        found = [item[field][-1] for item in (*one["items"], *two["items"])]
        assert (found, two["nextCursor"]) == (["0", "1", "2"], None)
