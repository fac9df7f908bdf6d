"""What Podman is asked for to make one container, and its system call filter. Pure.

The container has nothing that it was not given here: a read-only root, no capability, no network,
no variable of the environment, one folder of the host, read only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmonkeyd.confinement import Limits
from sandbox.egress.namespace import FILES

__all__ = ["INSIDE", "NO_PROGRAM", "UIDS", "Creation", "body", "seccomp_profile"]

# Where the folder of the container is, for who is in it.
INSIDE = "/run/flowmonkey"
# Who runs in it, in the container's own numbers; images have files for this user.
_USER = 1000
# Users of one container: 65534 is nobody, and images use numbers up to it.
UIDS = 65536
# The init that Podman puts into every container can wait for ever: needs no program of the image.
NO_PROGRAM = ("/run/podman-init", "-P")
_PERIOD_US = 100_000
_FILE = ("ro", "bind", "nosuid", "nodev", "noexec")
# The machine's own memory is short: containers go before the daemon does.
_OOM_SCORE = 500

# Calls that Podman's default profile allows, or allows with a capability, and no handler needs.
_REMOVED: Mapping[str, str] = {
    "namespaces of its own would give it all capabilities in them": "unshare setns",
    "file systems and roots": "mount umount umount2 pivot_root chroot mount_setattr open_tree "
    "move_mount fsopen fsconfig fsmount fspick name_to_handle_at open_by_handle_at quotactl "
    "quotactl_fd",
    "the host's keyring is none of its own": "add_key request_key keyctl",
    "other processes' memory and descriptors": "ptrace process_vm_readv process_vm_writev "
    "process_madvise process_mrelease pidfd_getfd kcmp",
    "programs in the kernel, and its counters": "bpf perf_event_open lookup_dcookie syslog",
    "a second way to make every call, past this filter": "io_uring_setup io_uring_enter "
    "io_uring_register",
    "page faults served by a process": "userfaultfd vmsplice remap_file_pages",
    "watches on whole file systems": "fanotify_init fanotify_mark",
    "other ways into the kernel": "modify_ldt vm86 vm86old uselib ustat sysfs nfsservctl "
    "memfd_secret personality",
    "the machine": "acct reboot swapon swapoff kexec_load kexec_file_load init_module "
    "finit_module delete_module query_module iopl ioperm vhangup sethostname setdomainname "
    "settimeofday clock_settime clock_settime64 stime adjtimex clock_adjtime clock_adjtime64",
}
# sched.h: every namespace flag, CLONE_NEWTIME included. Its number is that of CSIGNAL in clone.
_CLONE_NEW_ANY = 0x7E020080 & ~0xFF
# Unix, IPv4, IPv6; and netlink, by which programs ask for interfaces. No AF_VSOCK: it does not
# know network namespaces and leads to who runs this virtual machine. No AF_ALG.
_FAMILIES = (1, 2, 10)
_AF_NETLINK, _NETLINK_ROUTE = 16, 0
_PERSONALITIES = (0, 0xFFFFFFFF)  # Linux; only ask
_EPERM, _ENOSYS = 1, 38


@dataclass(frozen=True, slots=True)
class Creation:
    """One container, before it is made."""

    name: str
    image_id: str
    command: Sequence[str]
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    limits: Limits
    folder: Path
    etc: Path  # has the files of sandbox.egress.namespace.FILES
    tmp_bytes: int
    log_bytes: int
    seccomp: Path
    cgroup: str
    first_uid: int | None  # of the host, for the container's root; None: Podman's own (rootless)
    nproc: int
    device: str | None  # CDI


def body(asked: Creation) -> dict[str, Any]:
    """What POST /libpod/containers/create takes (Podman's SpecGenerator)."""
    limits = asked.limits
    uids = [{"container_id": 0, "host_id": asked.first_uid, "size": UIDS}]
    own_users = {
        "userns": {"nsmode": "private"},
        "idmappings": {
            "UIDMap": uids,
            "GIDMap": uids,
            "HostUIDMapping": False,
            "HostGIDMapping": False,
        },
    }
    files, size = limits.files, f"size={asked.tmp_bytes}"
    return {
        "name": asked.name,
        "image": asked.image_id,
        "image_pull_policy": "never",
        # Those that an image declares would be anonymous, and stay.
        "image_volume_mode": "ignore",
        "command": [*asked.command],
        # Images of ours have none; one from elsewhere would change the command.
        "entrypoint": [],
        "env": dict(asked.environment),
        "unsetenvall": True,
        "labels": dict(asked.labels),
        "user": f"{_USER}:{_USER}",
        "hostname": "flowmonkey",
        "init": True,
        "read_only_filesystem": True,
        "no_new_privileges": True,
        "cap_drop": ["ALL"],
        "seccomp_profile_path": str(asked.seccomp),
        "netns": {"nsmode": "none"},
        "use_image_hosts": True,
        "use_image_resolve_conf": True,
        **({} if asked.first_uid is None else own_users),
        "cgroup_parent": asked.cgroup,
        "mounts": [
            _mount("tmpfs", "tmpfs", "/tmp", "nosuid", "nodev", "mode=1777", size),
            _mount("bind", str(asked.folder), INSIDE, "ro", "rbind", "nosuid", "nodev", "rslave"),
            *(_mount("bind", str(asked.etc / Path(one).name), one, *_FILE) for one in FILES),
        ],
        "shm_size": asked.tmp_bytes,
        "devices": [{"path": asked.device}] if asked.device else [],
        "resource_limits": {
            # Memory and swap together: none of it is swapped out.
            "memory": {"limit": limits.memory_bytes, "swap": limits.memory_bytes},
            "cpu": {"quota": round(limits.cpus * _PERIOD_US), "period": _PERIOD_US},
            "pids": {"limit": limits.pids},
        },
        "r_limits": [
            {"type": "nofile", "hard": files, "soft": files},
            {"type": "core", "hard": 0, "soft": 0},
            {"type": "nproc", "hard": asked.nproc, "soft": asked.nproc},
        ],
        "oom_score_adj": _OOM_SCORE,
        "restart_policy": "no",
        "log_configuration": {"driver": "k8s-file", "size": asked.log_bytes},
    }


def _mount(kind: str, source: str, destination: str, *options: str) -> dict[str, Any]:
    return {"type": kind, "source": source, "destination": destination, "options": [*options]}


def seccomp_profile(default: str) -> str:
    """Podman's default profile (the text of seccomp.json) without what no handler needs.

    What it allows for a capability is gone, as there is none; `clone` makes no namespaces and
    `clone3`, whose flags no filter can see, is unknown, so that libraries take `clone`. Calls of
    other architectures (32 bits on x86-64) kill. Raises ValueError when the text is no profile.
    """
    profile = json.loads(default)
    if profile["defaultAction"] != "SCMP_ACT_ERRNO":
        raise ValueError("the default profile allows what it does not name")
    removed = {name for names in _REMOVED.values() for name in names.split()}
    ruled = removed | {"clone", "clone3", "socket"}
    rules = []
    for rule in profile["syscalls"]:
        if (rule.get("includes") or {}).get("caps"):
            continue
        names = [name for name in rule["names"] if name not in ruled]
        if names and (rule["action"] == "SCMP_ACT_ALLOW"):
            rules.append({**rule, "names": names, "excludes": {}})
    rules += [
        _rule("clone", _compare(0, "SCMP_CMP_MASKED_EQ", _CLONE_NEW_ANY, 0)),
        *(_rule("socket", _compare(0, "SCMP_CMP_EQ", family)) for family in _FAMILIES),
        _rule(
            "socket",
            _compare(0, "SCMP_CMP_EQ", _AF_NETLINK),
            _compare(2, "SCMP_CMP_EQ", _NETLINK_ROUTE),
        ),
        *(_rule("personality", _compare(0, "SCMP_CMP_EQ", one)) for one in _PERSONALITIES),
        _refusal(_ENOSYS, ["clone3"]),
        _refusal(_EPERM, sorted(removed - {"personality"})),
    ]
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": _ENOSYS,
            "archMap": [
                {"architecture": one["architecture"], "subArchitectures": []}
                for one in profile["archMap"]
            ],
            "syscalls": rules,
        }
    )


def _rule(name: str, *comparisons: dict[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [*comparisons]}


def _refusal(errno: int, names: list[str]) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": []}


def _compare(index: int, operation: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "op": operation, "value": value, "valueTwo": second}
