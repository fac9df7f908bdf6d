"""Publishing a package of 5 MB against unzip, SHA-256 and fsync of the same files, in one run.

The daemon is real and is asked over its socket, so that a publish contains the upload, the checks,
the compiling of Python and the catalogue's commit. Three packages of the same size: a bundle of
JavaScript with data, sources of Python among data, and nothing but Python.

    python benchmarks/packages.py [--megabytes 5] [--rounds 7]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import statistics
import tempfile
import time
import zipfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from engine import Daemon

from flowmonkeyd.documents.archive import FORMAT, MANIFEST, listed_files, pack_files

GOAL = 3.0
# As many as a handler with a few dependencies has.
FILES = 100
HANDLER = b"def handle(input, ctx):\n    return input\n"
SCRIPT = b"exports.handle = (input) => input;\n"


def data(rng: random.Random, size: int) -> bytes:
    """Half of it repeats, as in tables and minified code."""
    words = [rng.randbytes(6).hex().encode() for _ in range(500)]
    text = b" ".join(rng.choices(words, k=size // 13 + 1))
    return text[:size]


def python(rng: random.Random, size: int) -> bytes:
    """Functions such as people write."""
    parts, length = [], 0
    while length < size:
        name = f"f{rng.randrange(10**6)}"
        part = (
            f'def {name}(value, other=None):\n    """Return what {name} makes of a value."""\n'
            f"    found = [one for one in value if one.size > {rng.randrange(99)}]\n"
            f'    if other is not None and other.get("{name}"):\n'
            f'        raise ValueError(f"cannot use {{other!r}}: {rng.randrange(99)}")\n'
            f"    return {{'{name}': found, 'count': len(found) + {rng.randrange(9)}}}\n\n\n"
        )
        parts.append(part)
        length += len(part)
    return "".join(parts).encode()


def files(kind: str, size: int, seed: int) -> dict[str, bytes]:
    rng = random.Random(seed)
    each = size // FILES
    code = {"bundle": 0, "mixed": FILES // 10, "python": FILES}[kind]
    made = {f"lib/code{n}.py": python(rng, each) for n in range(code)}
    made |= {f"lib/data{n}.txt": data(rng, each) for n in range(FILES - code)}
    return made | ({"handler.js": SCRIPT} if kind == "bundle" else {"handler.py": HANDLER})


def package(kind: str, size: int, seed: int) -> bytes:
    whole = files(kind, size, seed)
    handler = {"type": f"bench/{kind}", "version": f"1.0.{seed}"}
    if kind == "bundle":
        handler |= {"runtime": "node", "entrypoint": "handler.js:handle"}
    built = {"format": FORMAT, "files": listed_files(whole), "builder": "benchmark/1"}
    whole[MANIFEST] = json.dumps({"handler": handler, "package": built}).encode()
    return pack_files(whole)


def publish(daemon: Daemon, data: bytes) -> float:
    with closing(daemon.connect()) as connection:
        began = time.perf_counter()
        connection.request("PUT", "/v1/handlers", data, {"content-type": "application/zip"})
        response = connection.getresponse()
        answer = response.read()
        took = time.perf_counter() - began
    assert response.status == 201, answer
    return took


def unzip(data: bytes, place: Path) -> float:
    began = time.perf_counter()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            hashlib.sha256(content).digest()
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    for folder, _, _ in os.walk(place, topdown=False):
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    took = time.perf_counter() - began
    shutil.rmtree(place)
    return took


def measured(daemon: Daemon, kind: str, size: int, rounds: int) -> Mapping[str, float]:
    """Medians, the two in turns."""
    ours, theirs = [], []
    for seed in range(rounds):
        data = package(kind, size, seed)
        theirs.append(unzip(data, daemon.directory / f"plain-{kind}-{seed}"))
        ours.append(publish(daemon, data))
    return {"publish": statistics.median(ours), "unzip": statistics.median(theirs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fm-bench-") as name, Daemon(Path(name)) as daemon:
        for kind in ("bundle", "mixed", "python"):
            took = measured(daemon, kind, args.megabytes * 1_000_000, args.rounds)
            ratio = took["publish"] / took["unzip"]
            said = f"publish {took['publish'] * 1e3:7.1f} ms, unzip {took['unzip'] * 1e3:7.1f} ms"
            print(f"{kind:<8} {said}, ratio {ratio:.2f} (goal {GOAL:g})")


if __name__ == "__main__":
    main()
