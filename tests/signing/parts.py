"""Packages as `handler build` makes them, small, and signed as a test wants them."""

from __future__ import annotations

import json

from flowmonkeyd.documents.archive import MANIFEST, SIGNATURE, listed_files, pack_files
from flowmonkeyd.documents.signing import PrivateKey, sign

__all__ = ["ACME", "EVIL", "SBOM", "built", "package"]

ACME = PrivateKey.new()
EVIL = PrivateKey.new()
SBOM = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.6",
    "components": [
        {"name": "pillow", "version": "11.0.0", "licenses": [{"license": {"id": "MIT-CMU"}}]},
        {"group": "@acme", "name": "x", "version": "1.0.0", "licenses": [{"expression": "MIT"}]},
    ],
}


def built(
    type_: str = "acme/echo",
    version: str = "1.0.0",
    code: bytes = b"def handle(input, ctx):\n    return input\n",
    sbom: bytes | None = None,
    runtime: str = "python",
    **manifest: object,
) -> dict[str, bytes]:
    """The files of a built package that nobody has signed."""
    file = "handler.py" if runtime == "python" else "handler.js"
    files = {file: code, "sbom.cdx.json": sbom or json.dumps(SBOM).encode()}
    package = {"format": 1, "files": listed_files(files), "builder": "flowmonkey/1.0.0"}
    handler = {"type": type_, "version": version, "runtime": runtime}
    handler["entrypoint"] = f"{file}:handle"
    document = {"handler": handler, **manifest, "package": {**package, "sbom": "sbom.cdx.json"}}
    return {MANIFEST: json.dumps(document).encode(), **files}


def package(files: dict[str, bytes], key: PrivateKey | None = None, comment: str = "") -> bytes:
    """The .afh of built files, signed when a key is given."""
    signature = {} if key is None else {SIGNATURE: sign(files, key, comment)}
    return pack_files({**files, **signature})
