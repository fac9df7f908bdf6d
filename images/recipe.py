"""Plans of the runtime images: what is to be done for a layer, in order, as values.

Pure: `plan` says what build.py does, `containerfile` says the same to people who have a container
registry, and `digest` names a plan, so that an image whose plan has not changed is not built again.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from images.runtimes import AGENT, APP, RUNTIMES, USER, Runtime, image_name, lineage

__all__ = [
    "EMPTIED",
    "EPOCH",
    "LEFT_OUT",
    "REVISION",
    "SUITE",
    "Plan",
    "agent_digest",
    "agent_files",
    "containerfile",
    "describe",
    "digest",
    "main",
    "plan",
    "runtime_recipe",
    "with_python",
]

SUITE = "bookworm"
EPOCH = 1735689600  # 2025-01-01: every file and image has this time, so that they compare equal
REVISION = 2  # raise it when build.py does the same plan differently

# Left out of every Debian package, in the base and in all its children. dpkg's own patterns.
LEFT_OUT = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
)
# Emptied after each layer: they differ from build to build or tell about the machine of the build.
EMPTIED = (
    "dev/*",
    "etc/*-",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/auth.conf",
    "etc/apt/auth.conf.d/*",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/*",
    "etc/machine-id",
    "root/.*",
    "run/*",
    "tmp/*",
    "var/cache/apt/*",
    "var/cache/debconf/*-old",
    "var/cache/fontconfig/*",
    "var/cache/ldconfig/*",
    "var/lib/apt/*",
    "var/lib/dpkg/*-old",
    "var/lib/systemd/*",
    "var/log/*",
    "var/tmp/*",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What makes one layer from its parent; the empty ones are skipped."""

    name: str
    parent: str | None
    suite: str
    debian: tuple[str, ...]
    left_out: tuple[str, ...]
    node: str | None
    npm: tuple[str, ...]
    compiled: tuple[str, ...]  # folders whose Python files get bytecode, after everything else
    folders: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    epoch: int
    revision: int
    above: str | None  # digest of the parent's plan


def plan(name: str) -> Plan:
    """The plan of a runtime's own layer, without the agent."""
    one = RUNTIMES[name]
    is_base = one.parent is None
    return Plan(
        name=name,
        parent=one.parent,
        suite=SUITE,
        debian=one.debian,
        left_out=LEFT_OUT if is_base else (),
        node=one.node,
        npm=one.npm,
        # A commit sets all times, so no bytecode fits its source by time any more: Python would
        # compile its own library at every start. unchecked-hash does not look at the times.
        compiled=("/usr/lib/python3", "/usr/lib/python3.11") if "python3" in one.debian else (),
        folders=(APP, AGENT, "/run/flowmonkey") if is_base else (),
        files=one.files,
        epoch=EPOCH,
        revision=REVISION,
        above=digest(plan(one.parent)) if one.parent else None,
    )


def digest(made: Plan) -> str:
    """Names a plan: two plans with one digest make the same image from the same archives."""
    return hashlib.sha256(json.dumps(asdict(made), sort_keys=True).encode()).hexdigest()


def agent_digest(above: str, folder: Path) -> str:
    """Names the last layer: the agent's files over the plan with the digest `above`."""
    hashed = hashlib.sha256(f"{above} {AGENT} {USER}\n".encode())
    for path in agent_files(folder):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        hashed.update(f"{path.relative_to(folder)} {content}\n".encode())
    return hashed.hexdigest()


def runtime_recipe(name: str, agent: Path) -> str:
    """Names the image of a runtime as containers are started from it: with the agent, if it runs
    handlers."""
    made = digest(plan(name))
    return agent_digest(made, agent) if RUNTIMES[name].languages else made


def agent_files(folder: Path) -> list[Path]:
    """The files of the agent, in order; bytecode of this machine is not among them."""
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )


def with_python(name: str) -> bool:
    """Whether an image has Python, of its own or from an ancestor."""
    return any("python3" in one.debian for one in lineage(name))


def containerfile(name: str) -> str:
    """The same image for people who have a container registry, in Containerfile's words."""
    one = RUNTIMES[name]
    lines = [
        f"# {one.summary}.",
        "# Made from images/runtimes.py by `python -m images.recipe`; edit that, then run it.",
        f"# podman build -t {image_name(name)} -f images/runtime-{name}/Containerfile .",
    ]
    if one.node:
        lines.append(f"FROM docker.io/library/node:{one.node}-{SUITE}-slim AS node")
    if one.npm:
        lines += [
            f"FROM docker.io/library/node:20-{SUITE}-slim AS npm",
            "WORKDIR /made",
            f"RUN npm install --ignore-scripts --no-audit --no-fund {' '.join(one.npm)}",
        ]
    origin = image_name(one.parent) if one.parent else f"docker.io/library/debian:{SUITE}-slim"
    lines.append(f"FROM {origin}")
    made = plan(name)
    if made.debian:
        lines += [
            "RUN apt-get update \\",
            "    && apt-get install -y --no-install-recommends " + " ".join(made.debian) + " \\",
            "    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*",
        ]
    if one.node:
        lines.append("COPY --from=node /usr/local/bin/node /usr/bin/node")
    if one.npm:
        lines.append("COPY --from=npm /made/node_modules /node_modules")
    for path, text in made.files:
        lines.append(f"RUN printf %s {shlex.quote(text.rstrip())} > {path}")
    if made.compiled:
        lines.append(
            "RUN python3 -m compileall -q -f --invalidation-mode unchecked-hash "
            + " ".join(made.compiled)
        )
    if made.folders:
        lines += [
            "RUN mkdir -p " + " ".join(made.folders) + " \\",
            f"    && groupadd --gid {USER} handler \\",
            f"    && useradd --uid {USER} --gid {USER} --no-create-home --home-dir /tmp handler",
        ]
    if one.languages:
        lines.append(f"COPY images/agent/ {AGENT}/")
    if one.languages and with_python(name):
        lines.append(f"RUN python3 -m compileall -q -f --invalidation-mode unchecked-hash {AGENT}")
    lines += [f'LABEL {key}="{value}"' for key, value in describe(one).items()]
    return "\n".join([*lines, ""])


def describe(one: Runtime) -> dict[str, str]:
    """Labels of a runtime image beside the versions of what is in it."""
    return {"flowmonkey.runtime": one.name, "flowmonkey.languages": ",".join(one.languages)}


def main() -> None:
    """Write images/runtime-*/Containerfile anew."""
    here = Path(__file__).parent
    for name in RUNTIMES:
        path = here / f"runtime-{name}" / "Containerfile"
        path.parent.mkdir(exist_ok=True)
        path.write_text(containerfile(name))


if __name__ == "__main__":
    main()
