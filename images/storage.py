"""One storage root for building: locked, with its own scratch folder, spoken to through buildah.

What an earlier build left because it was killed is removed when the next one opens the root.
Used by build.py only, inside its namespaces.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from images import records
from images.recipe import EPOCH

__all__ = ["BuildError", "Storage", "run", "say"]

MARK = "flowmonkey-build"  # working containers of ours begin with it


class BuildError(Exception):
    """A program of the build failed; its output has been printed."""


def say(text: str) -> None:
    """Print a line of the build's log at once, for who reads along."""
    print(text, flush=True)


def run(
    *argv: str | Path,
    env: Mapping[str, str] | None = None,
    only: Mapping[str, str] | None = None,
    quiet: bool = False,
) -> str:
    """Run a program and return what it prints; unless `quiet`, it is shown as it comes.

    `env` is added to the environment, `only` replaces it. Raises BuildError when it fails.
    """
    words = [str(word) for word in argv]
    output: list[str] = []
    with subprocess.Popen(
        words,
        env=dict(only) if only is not None else {**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if not quiet else None,
        text=True,
        errors="replace",
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            output.append(line)
            if not quiet:
                say(line.rstrip())
    if child.returncode:
        shown = " ".join(Path(word).name if word.startswith("/") else word for word in words[:4])
        raise BuildError(f"{shown} ended with {child.returncode}")
    return "".join(output)


class Storage:
    """A root to build into; images of `stores` are used as they are and never written."""

    def __init__(self, root: Path, stores: Sequence[Path]) -> None:
        self.root, self.stores = root, tuple(stores)
        self._own = root / "flowmonkey"
        self._times = self._own / "built.json"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the root's lock and have a scratch folder; both end with the block."""
        self._own.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._own / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            scratch = self._own / "scratch"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            self._configure(scratch)
            try:
                self._sweep()
                yield
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def scratch(self) -> Path:
        """A new empty folder that does not outlive the build."""
        return Path(tempfile.mkdtemp(dir=self._own / "scratch"))

    def find(self, recipe: str, name: str = "", since_ms: int = 0) -> str | None:
        """The id of the image that this recipe made, or that somebody brought under the name; of
        those made since then."""
        roots = (self.root, *self.stores)
        made = records.made_by(roots, recipe)
        if made is not None and max(made.made_ms, self._built().get(recipe, 0)) >= since_ms:
            return made.id
        brought = records.brought(roots, name)
        return brought.id if brought is not None else None

    def labels(self, image: str) -> Mapping[str, str]:
        """The labels of an image that exists."""
        roots = (self.root, *self.stores)
        return next(one.labels for one in records.images(roots) if one.id == image)

    @contextmanager
    def working(self, parent: str | None) -> Iterator[tuple[str, Path]]:
        """(working container, folder of its files) over an image, or over nothing."""
        name = f"{MARK}-{os.getpid()}"
        _buildah("from", "--pull=never", "--name", name, parent or "scratch")
        try:
            yield name, Path(_buildah("mount", name).strip())
        finally:
            _buildah("rm", name)

    def commit(self, container: str, name: str, labels: Mapping[str, str]) -> str:
        """Make an image of the working container and give it the name; returns its id."""
        words = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
        _buildah("config", *words, container)
        return _buildah(
            *("commit", "--quiet", "--timestamp", str(EPOCH), "--omit-history"),
            *("--identity-label=false", "--signature-policy", str(self._own / "policy.json")),
            *(container, name),
        ).strip()

    def built(self, recipe: str) -> None:
        """This recipe was followed now. If the image is the one that was there, it has kept its
        time."""
        times = {**self._built(), recipe: int(time.time() * 1000)}
        new = self._times.with_suffix(".new")
        new.write_text(json.dumps(times))
        new.rename(self._times)

    def _built(self) -> dict[str, int]:
        try:
            read = json.loads(self._times.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        assert isinstance(read, dict)
        return read

    def remove(self, images: Sequence[str]) -> None:
        """Remove images by id, in this order, until one that a container needs."""
        for image in images:
            _buildah("rmi", image)

    def _configure(self, scratch: Path) -> None:
        policy, config = self._own / "policy.json", self._own / "storage.conf"
        # What is made here is not signed; nothing is pulled.
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
        place = json.dumps(str(self.root))
        config.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = {place}\n'
            f"rootless_storage_path = {place}\n"
            # Its mounts are seen by this build only, so must be what is written about them.
            f"runroot = {json.dumps(str(scratch / 'run'))}\n[storage.options]\n"
            f"additionalimagestores = {json.dumps([str(path) for path in self.stores])}\n"
        )
        # Nothing of a build has a network of its own; whatever is set up here says nothing to it.
        networks = self._own / "containers.conf"
        networks.write_text(
            '[network]\nnetwork_backend = "netavark"\n'
            f"network_config_dir = {json.dumps(str(scratch / 'networks'))}\n"
        )
        os.environ["CONTAINERS_CONF"] = str(networks)
        os.environ["CONTAINERS_STORAGE_CONF"] = str(config)
        os.environ["TMPDIR"] = str(scratch)

    def _sweep(self) -> None:
        for name in records.containers(self.root):
            if name.startswith(MARK):
                _buildah("rm", name)


def _buildah(*argv: str) -> str:
    return run("buildah", *argv, quiet=True)
