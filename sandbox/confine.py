"""The order of confinement: lists of steps for the fork server and for each child.

Says what is done and in which order; how is `linux.py`'s. Every step belongs to a layer of
`model.ALL_LAYERS` and says what it does. A step that fails ends the process unless its layer is
not required: fail closed.

Theory of operation. The fork server lives in its own user namespace (root maps two ids: itself and
the handlers' unprivileged one; an ordinary user maps itself), is process 1 of its own PID
namespace, and holds two views of the files: the host's, which it visits only to pick up a package,
and a private root. Each child gets a copy of the private root, in which the server attaches
the package and the temp once the call is known: so a child can be confined completely, filter
included, before anything about its call exists (docs/decisions: the order of confinement).
"""

from __future__ import annotations

import fcntl
import functools
import glob
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sandbox import landlock, linux, nodejs, wire
from sandbox.egress import namespace
from sandbox.libraries import library_closure

__all__ = [
    "CHILD_STEPS",
    "PACKAGE",
    "ROOT_STEPS",
    "SERVER_STEPS",
    "TEMP",
    "ChildStep",
    "LayerFailed",
    "Plan",
    "Step",
    "Steps",
    "pick_up",
    "put_down",
    "steps_for",
    "take_prepared",
    "take_steps",
]

PACKAGE, TEMP = "/package", "/tmp"  # inside the private root
# A rule of Landlock does not count for what is mounted on its own folder, only for what is below.
_WRITABLE = "/private"
_TEMP_MOUNT = _WRITABLE + TEMP
_STAGE = "/sys"  # a folder that every Linux has and no interpreter lives in; hidden, not changed
_READONLY = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID
_DATA = _READONLY | linux.MOUNT_ATTR_NODEV
_SHARED = (
    *("/usr/share/zoneinfo", "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/usr/lib/ssl"),
    *("/usr/share/ca-certificates",),
)
_INNER_ID = 1  # the handlers' id inside the server's user namespace when it runs as root


@dataclass(slots=True)
class Plan:
    """What to confine and how; `missing` collects layers that failed and were not required."""

    layers: frozenset[str]
    required: frozenset[str]
    host_uid: int  # 0: keep the caller's id, which is not root
    cpu: int
    cpus: tuple[int, ...] = ()  # all that may be used here
    ports: tuple[int, ...] = ()  # the gateway's
    filters: dict[str, bytes] = field(default_factory=dict)  # profile: its seccomp program
    node_files: list[str] = field(default_factory=list)  # what Node needs; empty: there is none
    node_bytes: int = 0  # private memory of one that has just started
    rehearsal: str = ""  # a package of ours with warm.py
    missing: dict[str, str] = field(default_factory=dict)
    # Or one that also tells what is refused.
    install: Callable[[bytes], linux.Prepared] = linux.prepared_seccomp
    # What steps of the server leave for steps of the children.
    listeners: list[int] = field(default_factory=list)
    gateway_ns: int = -1
    rulesets: dict[str, int] = field(default_factory=dict)  # profile: Landlock's
    profile: str = "python"

    def cpus_for(self, cores: int) -> set[int]:
        """This slot's CPU and those after it, as many as there are."""
        at = self.cpus.index(self.cpu)
        return set((self.cpus[at:] + self.cpus[:at])[:cores])

    def has(self, layer: str) -> bool:
        """Whether this layer is asked for and could be set up so far."""
        return layer in self.layers and layer not in self.missing


class LayerFailed(Exception):
    """A required layer could not be set up."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"{layer}: {reason}")
        self.layer = layer
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done, for which layer, in words."""

    layer: str
    does: str
    apply: Callable[[Plan], None]


@dataclass(frozen=True, slots=True)
class ChildStep:
    """The same for a child of one profile, as calls that the fork server prepares."""

    layer: str
    does: str
    prepare: Callable[[Plan, str], Iterable[linux.Prepared]]
    only: str = ""  # for children whose profile has this word


Steps = tuple[tuple[str, str, tuple[linux.Prepared, ...]], ...]  # layer, what it does, its calls


def steps_for(plan: Plan, profile: str) -> Steps:
    """The steps of a child of this profile, as far as the layers hold now, ready to be taken."""
    words = {"", *profile.split("+")}
    return tuple(
        (step.layer, step.does, tuple(step.prepare(plan, profile)))
        for step in CHILD_STEPS
        if plan.has(step.layer) and step.only in words
    )


def take_steps(steps: Iterable[Step], plan: Plan) -> None:
    """Apply in order what the plan's layers ask for; raises LayerFailed for a required one."""
    for step in steps:
        if not plan.has(step.layer):
            continue
        try:
            step.apply(plan)
        except OSError as exc:
            _miss(plan, step.layer, step.does, exc)


def take_prepared(steps: Steps, plan: Plan) -> None:
    """The same in a child, with as little Python as can be: what it uses is copied each time."""
    missing = plan.missing
    for layer, does, calls in steps:
        if layer in missing:
            continue
        try:
            for name, call in calls:
                done = call()
                if done is not None and done < 0:
                    raise linux.last_error(name)
        except OSError as exc:
            _miss(plan, layer, does, exc)


def _miss(plan: Plan, layer: str, does: str, exc: OSError) -> None:
    reason = f"cannot {does}: {exc.strerror}"
    if layer in plan.required:
        raise LayerFailed(layer, reason) from exc
    plan.missing[layer] = reason


def pick_up(package: memoryview) -> int:
    """A detached, read-only mount of a package in this view of the files; raises OSError."""
    tree = linux.open_tree(package)
    try:
        linux.mount_setattr(tree, _DATA | linux.MOUNT_ATTR_NOSYMFOLLOW)
    except OSError:
        os.close(tree)
        raise
    return tree


def put_down(tree: int, temp_bytes: int) -> None:
    """Attach it, and a temp unless that has 0 bytes, to a child's root in this view; closes
    `tree`; raises OSError."""
    try:
        linux.move_mount(tree, PACKAGE)
        if temp_bytes:
            flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
            # An inode costs about 1 KiB of kernel memory: as many as pages, at most 16 384.
            options = f"size={temp_bytes},nr_inodes={min(temp_bytes // 4096, 16384)},mode=1777"
            linux.mount("tmpfs", _TEMP_MOUNT, "tmpfs", flags, options)
    finally:
        os.close(tree)


# --- steps of the fork server ---------------------------------------------------------------


def _enter_user_namespace(plan: Plan) -> None:
    """The maps are written by a process left outside: only there may root map a second id."""
    uid, gid, pid = os.getuid(), os.getgid(), os.getpid()
    if plan.host_uid:
        os.setgroups([])
    ready_read, ready_write = os.pipe()
    writer = os.fork()
    if writer == 0:
        status = 1
        try:
            os.close(ready_write)
            if os.read(ready_read, 1):
                _write_maps(pid, uid, gid, plan.host_uid)
                status = 0
        finally:
            os._exit(status)
    os.close(ready_read)
    try:
        linux.unshare(linux.CLONE_NEWUSER)
        os.write(ready_write, b".")
    finally:
        os.close(ready_write)
        _, status = os.waitpid(writer, 0)
    if status != 0:
        raise PermissionError(1, "the user id map cannot be written")


def _write_maps(pid: int, uid: int, gid: int, host_uid: int) -> None:
    second = f"\n{_INNER_ID} {host_uid} 1" if host_uid else ""
    if not host_uid:  # user_namespaces(7): an ordinary user must give up setgroups first
        _write(f"/proc/{pid}/setgroups", "deny")
    _write(f"/proc/{pid}/gid_map", f"0 {gid} 1{second}")
    _write(f"/proc/{pid}/uid_map", f"0 {uid} 1{second}")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _stop_mount_propagation(_plan: Plan) -> None:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)


def _name_host(_plan: Plan) -> None:
    linux.unshare(linux.CLONE_NEWUTS)
    linux.sethostname(b"sandbox")


def _unshare(flag: int) -> Callable[[Plan], None]:
    return lambda _plan: linux.unshare(flag)


def _open_gateway(plan: Plan) -> None:
    """A second network namespace, whose every address is answered by sockets of the daemon's."""
    linux.unshare(linux.CLONE_NEWNET)
    plan.listeners = namespace.prepare(plan.ports)
    plan.gateway_ns = _out_of_the_way(os.open("/proc/thread-self/ns/net", os.O_RDONLY))


def _out_of_the_way(fd: int) -> int:
    """The same above the numbers that a child gives its own descriptors."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)
    os.close(fd)
    return high


def _bound_resources(_plan: Plan) -> None:
    """What no call changes and children inherit; the rest comes with the call (`zygote._limit`)."""
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE):
        resource.setrlimit(kind, (0, 0))
    resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, 8 << 20))


SERVER_STEPS: tuple[Step, ...] = (
    Step("user-namespace", "leave the host's user ids", _enter_user_namespace),
    Step("pid-namespace", "leave the host's processes", _unshare(linux.CLONE_NEWPID)),
    Step("mount-namespace", "leave the host's mounts", _stop_mount_propagation),
    Step("ipc-namespace", "leave the host's message queues", _unshare(linux.CLONE_NEWIPC)),
    Step("uts-namespace", "take another host name", _name_host),
    Step("network", "open a gateway to the internet", _open_gateway),
    Step("network-namespace", "leave the host's network", _unshare(linux.CLONE_NEWNET)),
    Step("cgroup-namespace", "leave the host's control groups", _unshare(linux.CLONE_NEWCGROUP)),
    Step("one-core", "stay on one CPU", lambda plan: os.sched_setaffinity(0, {plan.cpu})),
    Step("rlimits", "bound core, stack and locked memory", _bound_resources),
)


def _build_root(plan: Plan) -> None:
    """Build the private root and move into it; the host's files are gone from this namespace."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("tmpfs", _STAGE, "tmpfs", linux.MS_NOSUID, "size=256k,nr_inodes=256,mode=755")
    for path in (PACKAGE, _WRITABLE, _TEMP_MOUNT, "/proc", "/etc", "/dev", "/empty"):
        os.mkdir(_STAGE + path, 0o755)
    os.symlink(_TEMP_MOUNT[1:], _STAGE + TEMP)
    _write_file("/etc/passwd", "nobody:x:65534:65534:nobody:/:/\n")
    _write_file("/etc/group", "nogroup:x:65534:\n")
    _write_file("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    for path, text in namespace.FILES.items():
        _write_file(path, text)
    with open(f"{plan.rehearsal}/warm.py", encoding="utf-8") as file:
        _write_file("/warm.py", file.read())
    plan.rehearsal = ""  # the root itself
    for path in _runtime_paths(plan.node_files):
        _bind(path, _DATA)
    if plan.node_files:
        _bind(nodejs.SHIM, _DATA, nodejs.INSIDE)
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        _bind(device, _READONLY | linux.MOUNT_ATTR_NOEXEC)
    # Process 1's own /proc: below a child's, because the kernel lets a user namespace mount
    # /proc only where a whole one is visible already (mount_too_revealing).
    linux.mount("proc", _STAGE + "/proc", "proc", 14)
    os.chdir(_STAGE)
    linux.pivot_root(".", ".")
    linux.umount2(".", linux.MNT_DETACH)
    os.chdir("/")
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        linux.mount_setattr(root, _READONLY | linux.MOUNT_ATTR_NODEV)
    finally:
        os.close(root)


def _runtime_paths(node_files: list[str]) -> list[str]:
    """The standard library, the libraries its extension modules need, what Node needs, the time
    zones, and the certificates that TLS trusts."""
    folders = [os.path.realpath(path) for path in sys.path if os.path.isdir(path)]
    tops = [f for f in folders if not any(f != g and f.startswith(g + "/") for g in folders)]
    modules = [path for folder in folders for path in glob.glob(folder + "/*.so")]
    modules += [path for folder in folders for path in glob.glob(folder + "/lib-dynload/*.so")]
    paths = list(dict.fromkeys(tops)) + library_closure(dict.fromkeys(modules))
    paths += [path for path in node_files if path not in paths]
    paths += [path for path in _SHARED if os.path.exists(path)]
    return paths


def _bind(path: str, attributes: int, inside: str = "") -> None:
    """The same path inside the root, read-only; packages installed on the host stay hidden."""
    target = _STAGE + (inside or path)
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    _attach_copy(path, target, attributes)
    for name in ("site-packages", "dist-packages"):
        if os.path.isdir(os.path.join(path, name)):
            _attach_copy(_STAGE + "/empty", os.path.join(target, name), _DATA)


def _attach_copy(source: str, target: str, attributes: int) -> None:
    tree = linux.open_tree(os.fsencode(source))
    try:
        linux.mount_setattr(tree, attributes)
        linux.move_mount(tree, target)
    finally:
        os.close(tree)


def _write_file(path: str, text: str) -> None:
    descriptor = os.open(_STAGE + path, os.O_CREAT | os.O_WRONLY, 0o444)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _write_rules(plan: Plan) -> None:
    """One set for each profile, made once: a child only enforces it. Files of the private root
    can be read, temp and /dev/null written, and Node executed where it is to be."""
    for profile in plan.filters or wire.PROFILES:
        program: list[str | int] = []
        if profile.startswith("node"):
            if not plan.node_files:
                continue
            loader = (f for f in plan.node_files if os.path.basename(f).startswith("ld-"))
            program = [nodejs.PROGRAM_FD, *loader]
        writable = (_WRITABLE, "/dev/null")
        ruleset = landlock.prepare(("/",), writable, program, allow_tcp="network" in profile)
        plan.rulesets[profile] = _out_of_the_way(ruleset)


ROOT_STEPS: tuple[Step, ...] = (
    Step("private-root", "build a root of its own", _build_root),
    Step("landlock", "write Landlock's rules", _write_rules),
)

# --- steps of each child ---------------------------------------------------------------------


def _own_proc(_plan: Plan, _profile: str) -> Iterable[linux.Prepared]:
    yield linux.prepared_mount("proc", "/proc", "proc", 15, "subset=pid")


def _own(flag: int) -> Callable[[Plan, str], Iterable[linux.Prepared]]:
    return lambda _plan, _profile: [linux.prepared_unshare(flag)]


def _enter_gateway(plan: Plan, _profile: str) -> Iterable[linux.Prepared]:
    yield linux.prepared_setns(plan.gateway_ns, linux.CLONE_NEWNET)


def _bound_descriptors(_plan: Plan, _profile: str) -> Iterable[linux.Prepared]:
    """Below the program's own: once it is closed, no descriptor can have its number again."""
    bound = functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (256, 256))
    yield linux.Prepared("setrlimit", bound)


def _become_nobody(plan: Plan, _profile: str) -> Iterable[linux.Prepared]:
    if plan.host_uid:
        inner = _INNER_ID if "user-namespace" in plan.layers else plan.host_uid
        yield linux.Prepared("setgroups", functools.partial(os.setgroups, []))
        yield linux.Prepared("setresgid", functools.partial(os.setresgid, inner, inner, inner))
        # keeps no capability over the server's namespaces: the next step gets fresh ones
        yield linux.Prepared("setresuid", functools.partial(os.setresuid, inner, inner, inner))
    elif os.getuid() == 0 and "user-namespace" not in plan.layers:
        yield linux.Prepared("setresuid", _refuse_root)


def _refuse_root() -> None:
    raise PermissionError(1, "the pool runs as root")


def _drop_capabilities(_plan: Plan, _profile: str) -> Iterable[linux.Prepared]:
    yield from linux.prepared_drop()


def _forbid_tracing(_plan: Plan, _profile: str) -> Iterable[linux.Prepared]:
    yield linux.prepared_dumpable(0)


def _die_with_server(_plan: Plan, _profile: str) -> Iterable[linux.Prepared]:
    yield linux.prepared_death_signal(signal.SIGKILL)


def _rule_out_privileges(_plan: Plan, _profile: str) -> Iterable[linux.Prepared]:
    yield linux.prepared_no_new_privs()


def _enforce_rules(plan: Plan, profile: str) -> Iterable[linux.Prepared]:
    yield linux.prepared_restrict_self(plan.rulesets.get(profile, -1))  # -1 fails: there is none


def _install_filter(plan: Plan, profile: str) -> Iterable[linux.Prepared]:
    yield plan.install(plan.filters[profile])


CHILD_STEPS: tuple[ChildStep, ...] = (
    ChildStep("proc", "mount a /proc of its own process only", _own_proc),
    ChildStep("ipc-namespace", "leave other executions' queues", _own(linux.CLONE_NEWIPC)),
    ChildStep("network", "enter the network namespace of the gateway", _enter_gateway, "network"),
    ChildStep("rlimits", "bound descriptors", _bound_descriptors, "node"),
    ChildStep("unprivileged-uid", "become an unprivileged user of the host", _become_nobody),
    ChildStep("user-namespace", "map to no user at all", _own(linux.CLONE_NEWUSER)),
    ChildStep("capabilities", "drop every privilege", _drop_capabilities),
    ChildStep("capabilities", "forbid tracing", _forbid_tracing),
    ChildStep("pid-namespace", "die with the server", _die_with_server),
    ChildStep("no-new-privs", "rule out new privileges", _rule_out_privileges),
    ChildStep("landlock", "open nothing else", _enforce_rules),
    ChildStep("seccomp", "install the filter", _install_filter),
)
