"""What this host gives the sandbox, tried for real: for this user, and for those who have less.

`probe` runs the pool's own trial in each view: as this user; if that is root, as an ordinary user
too; and both again with user namespaces refused. Each view but the first is a process of its own
that gives up what it should not have before it begins. It changes nothing on the host.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import landlock
from sandbox.model import ALL_LAYERS, DEFAULT_REQUIRED, Layer, PoolSettings

__all__ = ["Report", "View", "probe", "remedy", "view_here"]

_ORDINARY_UID = 65534
_PATIENCE_S = 60
_REASON_MAX = 300  # characters: of a traceback the end is not worth more
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class View:
    """The layers of one kind of user; `problem`: why they could not be tried, or empty."""

    name: str
    layers: tuple[Layer, ...] = ()
    problem: str = ""

    @property
    def runs_handlers(self) -> bool:
        """Whether every required layer holds."""
        return bool(self.layers) and all(x.available or not x.required for x in self.layers)


@dataclass(frozen=True, slots=True)
class Report:
    """What `probe` found; the first view is that of the user who asked."""

    kernel: str
    machine: str
    landlock_abi: int
    views: tuple[View, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values: {kernel, machine, landlockAbi, views: [{name, runsHandlers, problem,
        layers: [{name, holds, required, keeps, detail, remedy}]}]}."""
        return {
            "kernel": self.kernel,
            "machine": self.machine,
            "landlockAbi": self.landlock_abi,
            "views": [
                {
                    "name": view.name,
                    "runsHandlers": view.runs_handlers,
                    "problem": view.problem,
                    "layers": [_as_dict(layer) for layer in view.layers],
                }
                for view in self.views
            ],
        }

    def as_text(self) -> str:
        """A table of the layers, then what is missing, why, and what to do about it."""
        views = [view for view in self.views if view.layers]
        lines = [f"Linux {self.kernel} {self.machine}, Landlock ABI {self.landlock_abi or 'none'}"]
        if self.landlock_abi:
            lines += [f"  Landlock: {x}" for x in landlock.shortcomings(self.landlock_abi)]
        lines += [f"  {number}: {view.name}" for number, view in enumerate(views, 1)]
        lines += ["", f"{'layer':<18} " + " ".join(f"{n:<8}" for n in range(1, len(views) + 1))]
        for name, keeps in ALL_LAYERS.items():
            states = " ".join(f"{_state(view, name):<8}" for view in views)
            lines.append(f"{name:<18} {states} {keeps}")
        for view in self.views:
            verdict = "handlers run" if view.runs_handlers else "NO handler runs"
            lines += ["", f"{view.name}: {view.problem or verdict}"]
            lines += _reasons(view.layers)
        return "\n".join(lines) + "\n"


def probe(required: frozenset[str] = DEFAULT_REQUIRED) -> Report:
    """Try every layer in every view; a second or two. Not to be called in an event loop."""
    is_root = os.geteuid() == 0
    us = "root" if is_root else f"user {os.geteuid()}"
    views = [View(us, view_here(required))]
    off = ", user namespaces refused"
    with tempfile.TemporaryDirectory(prefix="sandbox-probe-") as name:
        folder = Path(name)
        try:
            _copy_ourselves(folder)
        except OSError as exc:
            views.append(View("others", (), f"not tried: {exc}"))
        else:
            views.append(_view_elsewhere(us + off, folder, None, True, required))
            if is_root:
                other = f"user {_ORDINARY_UID}"
                views.append(_view_elsewhere(other, folder, _ORDINARY_UID, False, required))
                views.append(_view_elsewhere(other + off, folder, _ORDINARY_UID, True, required))
    system = os.uname()
    return Report(system.release, system.machine, landlock.abi(), tuple(views))


def view_here(required: frozenset[str] = DEFAULT_REQUIRED) -> tuple[Layer, ...]:
    """The layers as this very process gets them; a missing one does not stop the others."""
    from sandbox.pool import Pool

    async def tried() -> list[Layer]:
        pool = Pool(PoolSettings(slots=1, spares=1, required_layers=frozenset()))
        await pool.start()
        try:
            return pool.layers()
        finally:
            await pool.close()

    layers = asyncio.run(tried())
    return tuple(dataclasses.replace(x, required=x.name in required) for x in layers)


def remedy(layer: str) -> str:
    """What an operator can do about a layer that is missing on this host; empty: nothing known."""
    return "; ".join(_remedies(layer))


def _remedies(layer: str) -> Iterable[str]:
    if layer.endswith("-namespace") or layer in ("private-root", "proc", "capabilities"):
        if _setting("user/max_user_namespaces") == "0":
            yield "sysctl -w user.max_user_namespaces=15000"
        if _setting("kernel/unprivileged_userns_clone") == "0":  # Debian's kernels
            yield "sysctl -w kernel.unprivileged_userns_clone=1"
        if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":  # Ubuntu's
            yield (
                "give the daemon an AppArmor profile with `userns,`, or "
                "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
            )
        if _status("Seccomp") == "2":
            yield (
                "this process is itself filtered (a container's seccomp profile?): allow unshare, "
                "clone, mount, pivot_root and setns to it"
            )
    match layer:
        case "proc":
            yield "in a container, unmask /proc (podman run --security-opt unmask=/proc/*)"
        case "seccomp":
            yield "install libseccomp (Debian: libseccomp2; Fedora: libseccomp)"
        case "landlock" if landlock.abi() == 0:
            yield "Linux 5.13 or newer with landlock in the boot parameter lsm="
        case "cgroup" if os.path.isdir("/run/systemd/system"):
            yield "Delegate=yes in the daemon's unit"
        case _:
            pass


def _setting(name: str) -> str:
    """Of /proc/sys; empty where the kernel has none."""
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""


def _status(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def _copy_ourselves(folder: Path) -> None:
    """Where any user can read them: the folder of a checkout may be closed to others."""
    binding = importlib.util.find_spec("pyseccomp")
    if binding is None or binding.origin is None:
        raise OSError(errno.ENOENT, "pyseccomp is not installed")
    shutil.copytree(_HERE, folder / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(binding.origin, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _view_elsewhere(
    name: str, folder: Path, uid: int | None, refuse: bool, required: frozenset[str]
) -> View:
    from sandbox.forkserver import PYTHON_DEFAULT

    words = ["refuse"] if refuse else []
    groups: dict[str, Any] = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
    try:
        done = subprocess.run(
            [PYTHON_DEFAULT, "-B", "-m", "sandbox", "view", *words],
            cwd=folder,
            env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            **groups,
        )
        layers = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError) as exc:
        return View(name, (), f"not tried: {exc}")
    except ValueError:
        return View(name, (), f"not tried: {done.stderr.strip().rpartition(chr(10))[2]}")
    found = (Layer(**layer) for layer in layers)
    return View(name, tuple(dataclasses.replace(x, required=x.name in required) for x in found))


def _was_tried(layer: Layer) -> bool:
    return not layer.detail.startswith("not tried")


def _state(view: View, name: str) -> str:
    for layer in view.layers:
        if layer.name == name:
            if layer.available:
                return "holds"
            if not _was_tried(layer):
                return "untried"
            return "MISSING" if layer.required else "missing"
    return ""


def _reasons(layers: Iterable[Layer]) -> list[str]:
    """The layers that are missing for one reason are one line."""
    reasons: dict[str, list[Layer]] = {}
    for layer in layers:
        if not layer.available:
            reasons.setdefault(layer.detail, []).append(layer)
    lines = []
    for reason, missing in reasons.items():
        names = ", ".join(layer.name for layer in missing)
        lines.append(f"  {names}: {reason[:_REASON_MAX]}")
        remedies = (text for x in missing if _was_tried(x) for text in _remedies(x.name))
        lines += [f"    to do: {text}" for text in dict.fromkeys(remedies)]
    return lines


def _as_dict(layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "holds": layer.available,
        "required": layer.required,
        "keeps": ALL_LAYERS[layer.name],
        "detail": layer.detail,
        "remedy": "" if layer.available or not _was_tried(layer) else remedy(layer.name),
    }
