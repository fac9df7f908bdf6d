"""What secrets cost: reading them, looking for them in what a handler says, and a whole step.

The vault is a real one on a real database. A step is measured through a real daemon, with a handler
that is given three secrets and one that is given none, in turns in one run.

    python benchmarks/vault.py [--rounds 400]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import json
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from engine import Daemon

from flowmonkeyd.clock import SystemClock
from flowmonkeyd.documents.archive import pack_files
from flowmonkeyd.masking import Masks
from flowmonkeyd.store import Store, ledger
from flowmonkeyd.vault import Value
from flowmonkeyd.vault.keys import keyring
from flowmonkeyd.vault.local import Local

GOAL_MS = 0.1
NAMES = ("token", "password", "key")
TOKENS = {name: Value(secrets.token_urlsafe(30)) for name in NAMES}
LINES = [base64.b64encode(secrets.token_bytes(48)).decode() for _ in range(28)]
PEM = {"pem": Value("\n".join(["-----BEGIN PRIVATE KEY-----", *LINES, "-----END-----", ""]))}
EMPTY = {"type": "static", "value": {}}
HANDLER = b"def handle(input, ctx):\n    return {'n': len(ctx.secrets)}\n"


def p50_ms(samples: list[float]) -> float:
    return statistics.median(samples) * 1000


def timed(work: Callable[[], object], rounds: int) -> float:
    samples = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        samples.append(time.perf_counter() - began)
    return p50_ms(samples)


async def reading(folder: Path, rounds: int) -> None:
    store = Store(folder / "fm.db", SystemClock())
    await store.open()
    async with asyncio.TaskGroup() as group:
        group.create_task(store.run())
        await store.write(ledger.sync_types)
        vault = Local(store, keyring("", folder, {}))
        await vault.open()
        for name, value in {**TOKENS, **PEM}.items():
            await vault.put("default", name, value, "benchmark")
        for what, names in (("one secret", ("token",)), ("three", NAMES), ("a PEM file", ("pem",))):
            samples = []
            for _ in range(rounds):
                began = time.perf_counter()
                await vault.read("default", names)
                samples.append(time.perf_counter() - began)
            verdict = "ok" if p50_ms(samples) <= GOAL_MS else "TOO SLOW"
            print(f"read {what:10} {p50_ms(samples):8.4f} ms p50, goal {GOAL_MS} ms: {verdict}")
        await vault.close()
        await store.close()


def masking(rounds: int) -> None:
    small = {"order": 17, "items": [{"sku": f"a{n}", "name": "a thing"} for n in range(10)]}
    line = "INFO handled the order 17 with 10 items for tenant acme in 12 ms"
    large = {str(n): f"value {n} of something" for n in range(30_000)}
    size = len(json.dumps(large)) / 1e6
    for what, values in (("three tokens", TOKENS), ("a PEM file", PEM)):
        print(f"mask, {what}: made in {timed(lambda v=values: Masks(v), rounds):.3f} ms p50")
        masks = Masks(values)
        for of, work, times in (
            ("a log line", lambda m=masks: m.text(line), rounds),
            ("a small result", lambda m=masks: m.tree(small), rounds),
            (f"a result of {size:.1f} MB", lambda m=masks: m.tree(large), 9),
        ):
            print(f"  {of:20} {timed(work, times):8.4f} ms p50")


def package(name: str, given: tuple[str, ...]) -> bytes:
    inputs = [{"property": one, "source": "vault", "required": True} for one in given]
    manifest = {"handler": {"type": f"bench/{name}", "version": "1.0.0"}, "inputs": inputs}
    return pack_files({"handler.json": json.dumps(manifest).encode(), "handler.py": HANDLER})


def steps(folder: Path, rounds: int) -> None:
    with Daemon(folder) as daemon, closing(daemon.connect()) as client:
        for name, value in TOKENS.items():
            client.call("PUT", f"/v1/secrets/{name}", {"value": value.text})
        kinds = {"without": (), "with": NAMES}
        for kind, given in kinds.items():
            zipped = {"content-type": "application/zip"}
            client.request("PUT", "/v1/handlers", package(kind, given), zipped)
            assert client.getresponse().read()
            step = {"id": "a", "type": f"bench/{kind}", "config": {}, "input": EMPTY}
            flow = {"id": kind, "version": "1.0.0", "initialStepId": "a", "steps": {"a": step}}
            client.call("PUT", "/v1/flows", flow)
        samples: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(rounds + 20):
            for kind in kinds:
                began = time.perf_counter()
                body = {"flow": kind, "context": {}}
                run = client.call("POST", "/v1/executions?waitMs=30000", body)
                took = time.perf_counter() - began
                assert run["status"] == "completed", run["error"]
                if number >= 20:
                    samples[kind].append(took)
    without, given_ms = p50_ms(samples["without"]), p50_ms(samples["with"])
    print(f"an execution of one step: {without:.2f} ms p50, with three secrets {given_ms:.2f} ms")
    print(f"  ratio {given_ms / without:.2f}; the difference is mostly the commit that says so")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    rounds = parser.parse_args().rounds
    gc.collect()
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(reading(Path(name), rounds))
    masking(rounds)
    with tempfile.TemporaryDirectory() as name:
        steps(Path(name), rounds)


if __name__ == "__main__":
    main()
