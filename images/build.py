"""Build images into a storage root: `python -m images.build --root ROOT runtime [NAME…]`.

A program of its own, standard library only. It works in namespaces that end with it: a killed
build leaves no process and no mount, only files in ROOT that the next build removes. Everything
comes from the archives this machine is set up for (apt, npm); none of that set-up gets into an
image. One build at a time in one ROOT. Prints what it does, a line at a time; exit 1: it failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from images import archives, handler
from images.recipe import (
    EMPTIED,
    Plan,
    agent_files,
    describe,
    digest,
    plan,
    runtime_recipe,
    with_python,
)
from images.runtimes import AGENT, RUNTIMES, USER, Runtime, image_name, stage_name
from images.storage import BuildError, Storage, run, say

__all__ = ["ENVIRONMENT", "HERE", "Builder", "inside", "main"]

HERE = Path(__file__).parent
# From nothing: what a user has in the environment is no input of an image.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


class Builder:
    """Builds into an opened storage. What was made before `since_ms` does not count as there."""

    def __init__(self, storage: Storage, agent: Path, since_ms: int = 0) -> None:
        self._storage, self._agent, self._since_ms = storage, agent, since_ms

    def runtime(self, name: str) -> str:
        """The id of a runtime's image, which is built with all it stands on if it is not there."""
        one, recipe = RUNTIMES[name], runtime_recipe(name, self._agent)
        there = self._there(recipe, image_name(name))
        if there is not None:
            return there
        stage = self._stage(one)
        return self._with_agent(one, stage, recipe) if one.languages else stage

    def has(self, names: Sequence[str]) -> bool:
        """Whether nothing is to be done for the images of these runtimes."""
        return all(
            self._there(runtime_recipe(name, self._agent), image_name(name)) for name in names
        )

    def handler(self, name: str, package: str, folder: Path) -> str:
        """The id of a handler's image: its package over the image of a runtime."""
        # New packages are a new runtime's business: this layer only is to be made since then.
        parent = Builder(self._storage, self._agent).runtime(name)
        made = handler.HandlerPlan(package, name, parent)
        there = self._there(made.recipe)
        if there is not None:
            return there
        storage = self._storage
        with storage.working(parent) as (container, root):
            handler.copy(folder, root / handler.INSIDE)
            if with_python(name):
                handler.compile_inside(run, root, ENVIRONMENT)
            image = storage.commit(container, made.name, made.labels)
        say(f"{made.name}: {image}")
        return image

    def _there(self, recipe: str, name: str = "") -> str | None:
        return self._storage.find(recipe, name, self._since_ms)

    def _stage(self, one: Runtime) -> str:
        made = plan(one.name)
        image = self._there(digest(made))
        if image is None:
            parent = self._stage(RUNTIMES[one.parent]) if one.parent else None
            say(f"{one.name}: {one.summary}")
            image = self._layer(one, made, parent)
            self._storage.built(digest(made))
            say(f"{one.name}: {image}")
        return image

    def _layer(self, one: Runtime, made: Plan, parent: str | None) -> str:
        storage = self._storage
        versions = {}
        if parent:
            versions = json.loads(storage.labels(parent)["flowmonkey.versions"])
        with storage.working(parent) as (container, root):
            if parent is None:
                archives.debootstrap(run, root, made, storage.scratch())
                _own_user(root)
            elif made.debian:
                archives.install(run, root, made, storage.scratch())
            if made.node:
                kind = platform.machine()
                versions |= archives.node(run, root, made.node, storage.scratch(), kind)
            if made.npm:
                versions |= archives.modules(run, root, made.npm, storage.scratch())
            versions |= archives.debian_versions(run, root)
            for path, text in made.files:
                (root / path.lstrip("/")).write_text(text)
            for folder in made.folders:
                (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
            _compile(root, made.compiled)
            _clean(root)
            labels = {
                **describe(one),
                "flowmonkey.recipe": digest(made),
                "flowmonkey.versions": json.dumps(versions, sort_keys=True),
            }
            return storage.commit(container, stage_name(one.name), labels)

    def _with_agent(self, one: Runtime, stage: str, recipe: str) -> str:
        storage, name = self._storage, image_name(one.name)
        say(f"{one.name}: the agent")
        with storage.working(stage) as (container, root):
            target = root / AGENT.lstrip("/")
            for path in agent_files(self._agent):
                copy = target / path.relative_to(self._agent)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
                copy.chmod(0o644)
            if with_python(one.name):
                _compile(root, (AGENT,))
            image = storage.commit(container, name, {**describe(one), "flowmonkey.recipe": recipe})
        say(f"{one.name}: {image}")
        return image


def _own_user(root: Path) -> None:
    for name, line in (
        ("passwd", f"handler:x:{USER}:{USER}::/tmp:/usr/sbin/nologin\n"),
        ("group", f"handler:x:{USER}:\n"),
    ):
        with (root / "etc" / name).open("a") as file:
            file.write(line)


def _compile(root: Path, folders: Sequence[str]) -> None:
    if folders:
        run(
            *("chroot", root, "/usr/bin/python3", "-I", "-m", "compileall", "-q", "-f"),
            *("--invalidation-mode", "unchecked-hash", *folders),
            only=ENVIRONMENT,
        )


def _clean(root: Path) -> None:
    for pattern in EMPTIED:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for name in ("hostname", "resolv.conf"):  # this machine's; empty, for others to mount over
        (root / "etc" / name).unlink(missing_ok=True)
        (root / "etc" / name).touch()


def inside(argv: Sequence[str]) -> list[str]:
    """The command line that runs this program in namespaces which end when it ends."""
    own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    # Without root in a user namespace, by a program that would leave us behind when it is killed.
    user = [] if os.geteuid() == 0 else ["buildah", "unshare", "setpriv", "--pdeathsig", "KILL"]
    return [*user, *own, sys.executable, "-m", "images.build", "--inside", *argv]


def main() -> int:
    """Read the command line, enter the namespaces, build."""
    given = _options().parse_args()
    storage = Storage(given.root.resolve(), [path.resolve() for path in given.store])
    builder = Builder(storage, given.agent, given.since)
    names = given.names or list(RUNTIMES) if given.what == "runtime" else []
    if unknown := set(names) - set(RUNTIMES):
        print(f"no runtime {sorted(unknown)[0]!r}: {', '.join(RUNTIMES)}", file=sys.stderr)
        return 2
    if given.ask or (given.what == "runtime" and builder.has(names)):
        return 0 if builder.has(names) else 1
    if not given.inside:
        os.environ["PYTHONPATH"] = str(HERE.parent)
        words = inside(sys.argv[1:])
        os.execvp(words[0], words)
    try:
        with storage.opened():
            for name in names:
                builder.runtime(name)
            if given.what == "handler":
                builder.handler(given.runtime, given.package, given.folder)
            if given.what == "remove":
                storage.remove(given.ids)
    except (BuildError, OSError) as error:
        say(f"cannot build: {error}")
        return 1
    return 0


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m images.build", description=__doc__)
    options.add_argument("--root", type=Path, required=True, help="storage root to build into")
    options.add_argument(
        "--store", type=Path, action="append", default=[], help="a root whose images are used"
    )
    options.add_argument("--agent", type=Path, default=HERE / "agent", help="folder of the agent")
    options.add_argument(
        "--since", type=int, default=0, metavar="MS", help="build anew what was made before then"
    )
    options.add_argument("--ask", action="store_true", help="exit 1 if there is work, do none")
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    kinds = options.add_subparsers(dest="what", required=True)
    runtime = kinds.add_parser("runtime", help="images of runtimes; without names all")
    runtime.add_argument("names", nargs="*", metavar="NAME")
    of_handler = kinds.add_parser("handler", help="the image of a package")
    of_handler.add_argument("runtime", choices=RUNTIMES)
    of_handler.add_argument("package", help="the package's digest")
    of_handler.add_argument("folder", type=Path, help="the package's files")
    remove = kinds.add_parser("remove", help="images by id, unless something needs them")
    remove.add_argument("ids", nargs="*")
    return options


if __name__ == "__main__":
    sys.exit(main())
