"""What comes from the archives: Debian packages and npm packages, put into a folder.

Run by build.py. The machine's own set-up of apt and npm says where the archives are; apt runs
outside and only dpkg inside, so that no source, proxy or key of this machine is ever in the image.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from images.recipe import Plan

__all__ = [
    "LISTS",
    "REACHING",
    "debian_versions",
    "debootstrap",
    "install",
    "modules",
    "node",
    "sources_of",
]

# For what packages run when they are installed; the mounts end with the command.
WITH_DEVICES = """
mount --rbind /dev "$1/dev"
mount --rbind /proc "$1/proc"
shift
exec "$@"
"""
Run = Callable[..., str]
LISTS = Path("/etc/apt")
# Keys of apt's configuration that say how to reach an archive.
REACHING = re.compile(
    r'^(Acquire::(?:http|https|ftp|Allow|Check|Force|Proxy|Retries)\S*) "(.+)";$', re.MULTILINE
)


def sources_of(suite: str, folder: Path = LISTS) -> str:
    """The machine's sources of a suite and its updates, one-line style and deb822, the rest left.

    Empty when the machine is another release: Debian's own mirror is then used.
    """
    suites = {suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates"}
    kept = []
    for path in sorted([folder / "sources.list", *folder.glob("sources.list.d/*")]):
        if not path.is_file():
            continue
        text = path.read_text()
        if path.suffix == ".sources":
            kept += [part for part in re.split(r"\n[ \t]*\n", text) if _names(part, suites)]
        elif path.suffix == ".list":
            kept += [
                _deb822(*found) for line in text.splitlines() if (found := _line(line, suites))
            ]
    return "\n\n".join(part.strip() for part in kept) + "\n" if kept else ""


def _names(stanza: str, suites: set[str]) -> bool:
    fields = {
        key.lower(): value.split()
        for key, _, value in (line.partition(":") for line in stanza.splitlines())
        if not key.startswith("#")
    }
    return (
        "deb" in fields.get("types", ())
        and fields.get("enabled") != ["no"]
        and set(fields.get("suites", ())) <= suites
        and "main" in fields.get("components", ())
    )


def _line(line: str, suites: set[str]) -> tuple[str, str, str, str] | None:
    found = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+(.*\bmain\b.*)", line.strip())
    if not found or found[3] not in suites:
        return None
    return found[1] or "", found[2], found[3], found[4]


def _deb822(options: str, uri: str, suite: str, components: str) -> str:
    signed = re.search(r"signed-by=(\S+)", options)
    lines = ["Types: deb", f"URIs: {uri}", f"Suites: {suite}", f"Components: {components}"]
    return "\n".join([*lines, *([f"Signed-By: {signed[1]}"] if signed else ())])


def _reaching(run: Run) -> list[tuple[str, str]]:
    found = REACHING.findall(run("apt-config", "dump", quiet=True))
    return [*found, ("Acquire::Retries", "3"), ("Acquire::Languages", "none")]


def debootstrap(run: Run, root: Path, made: Plan, scratch: Path) -> None:
    """Fill an empty folder with Debian's essential packages and those of the plan."""
    sources = scratch / "archive.sources"
    sources.write_text(sources_of(made.suite))
    words = ["mmdebstrap", "--variant=minbase", "--format=directory"]
    config = scratch / "apt.conf"  # not as words, which everybody can see: a proxy has passwords
    config.write_text("".join(f'{key} "{value}";\n' for key, value in _reaching(run)))
    words += [f"--aptopt={config}"]
    words += [f"--dpkgopt=path-exclude={pattern}" for pattern in made.left_out]
    words += [f"--include={','.join(made.debian)}", made.suite, str(root)]
    if sources.stat().st_size:
        words.append(str(sources))
    run(*words, env={"SOURCE_DATE_EPOCH": str(made.epoch)})


def install(run: Run, root: Path, made: Plan, scratch: Path) -> None:
    """Add the plan's Debian packages to a folder that debootstrap filled."""
    sources = scratch / "archive.sources"
    default = f"Types: deb\nURIs: http://deb.debian.org/debian\nSuites: {made.suite}\n"
    sources.write_text(sources_of(made.suite) or default + "Components: main\n")
    state = scratch / "apt"
    (state / "lists/partial").mkdir(parents=True)
    cache = root / "var/cache/apt/archives"
    (cache / "partial").mkdir(parents=True, exist_ok=True)
    settings = [
        *_reaching(run),
        ("APT::Sandbox::User", "root"),
        ("APT::Install-Recommends", "false"),
        ("Dir::Etc::parts", "/dev/null"),
        ("Dir::Etc::main", "/dev/null"),
        ("Dir::Etc::sourcelist", str(sources)),
        ("Dir::Etc::sourceparts", "/dev/null"),
        ("Dir::Etc::preferences", "/dev/null"),
        ("Dir::Etc::preferencesparts", "/dev/null"),
        ("Dir::State", str(state)),
        ("Dir::State::status", str(root / "var/lib/dpkg/status")),
        ("Dir::Cache", str(state)),
        ("Dir::Cache::archives", str(cache)),
        ("Dir::Log", str(state)),
        ("DPkg::Chroot-Directory", str(root)),
        ("DPkg::Use-Pty", "false"),
        ("DPkg::Path", "/usr/sbin:/usr/bin:/sbin:/bin"),
    ]
    config = scratch / "apt.conf"
    config.write_text("".join(f'{key} "{value}";\n' for key, value in settings))
    env = {
        "APT_CONFIG": str(config),
        "DEBIAN_FRONTEND": "noninteractive",
        "LC_ALL": "C.UTF-8",
        "SOURCE_DATE_EPOCH": str(made.epoch),
    }
    for name in ("dev", "proc"):
        (root / name).mkdir(exist_ok=True)
    run("apt-get", "-qq", "update", env=env)
    install = ("apt-get", "-qq", "-y", "install", *made.debian)
    run("unshare", "--mount", "sh", "-euc", WITH_DEVICES, "sh", root, *install, env=env)
    shutil.rmtree(state)


def debian_versions(run: Run, root: Path) -> dict[str, dict[str, str]]:
    """Versions of all Debian packages in a folder."""
    listed = run(
        *("dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show"),
        *("--showformat", "${Package} ${Version}\n"),
        quiet=True,
    )
    return {"debian": dict(line.split() for line in listed.splitlines())}


def node(
    run: Run, root: Path, version: str, scratch: Path, machine: str
) -> dict[str, dict[str, str]]:
    """Put the newest program of a range of Node versions at /usr/bin/node."""
    kind = {"x86_64": "x64", "aarch64": "arm64"}[machine]
    made = _npm(run, scratch, [f"node-linux-{kind}@{version}"])
    program = root / "usr/bin/node"
    shutil.copyfile(made / f"node_modules/node-linux-{kind}/bin/node", program)
    program.chmod(0o755)
    return {"node": _locked(made)}


def modules(
    run: Run, root: Path, packages: Sequence[str], scratch: Path
) -> dict[str, dict[str, str]]:
    """Put npm packages and what they need into /node_modules; no script of theirs is run."""
    made = _npm(run, scratch, packages)
    shutil.copytree(
        made / "node_modules",
        root / "node_modules",
        symlinks=True,
        ignore=lambda _, names: {".bin", ".package-lock.json"} & set(names),
    )
    return {"npm": _locked(made)}


def _npm(run: Run, folder: Path, packages: Sequence[str]) -> Path:
    # The system's, else the one in this Python's own environment (script/setup puts it there).
    npm = shutil.which("npm") or str(Path(sys.executable).with_name("npm"))
    run(
        *(npm, "install", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund"),
        *("--loglevel=error", "--cache", folder / ".cache", *packages),
    )
    return folder


def _locked(folder: Path) -> dict[str, str]:
    packages = json.loads((folder / "package-lock.json").read_text())["packages"]
    return {
        name.rpartition("node_modules/")[2]: one["version"]
        for name, one in packages.items()
        if name and (folder / name).is_dir()
    }
