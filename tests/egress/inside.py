"""The process that plays the handler: in namespaces of its own, runs code that a test sends.

Started by conftest as `python -I -S inside.py FD UID PORTS`. It becomes UID, enters new user,
network and mount namespaces, prepares the gateway's network and sends its sockets over FD (without
PORTS it stands for a container, and does neither), then answers one JSON line with another:
{"code", "args"} with {"result"} or {"error"}.
"""

import json
import os
import socket
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import http.client  # before the user changes, who may not be able to read it
import urllib.request

from sandbox import linux
from sandbox.egress import namespace

__all__ = ["http", "urllib"]


def write(path, text):
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def confine(uid):
    if os.getuid() != uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        linux.set_dumpable(1)  # or /proc/self is root's
    gid = os.getgid()
    linux.unshare(linux.CLONE_NEWUSER)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/gid_map", f"0 {gid} 1")
    write("/proc/self/uid_map", f"0 {uid} 1")
    linux.unshare(linux.CLONE_NEWNET | linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
    linux.mount("tmpfs", "/mnt", "tmpfs", 0)
    for path, text in namespace.FILES.items():
        there = f"/mnt/{os.path.basename(path)}"
        Path(there).write_text(text)
        linux.mount(there, path, "", 4096)  # MS_BIND


def answer(request):
    scope = {}
    try:
        exec(request["code"], scope)
        return {"result": scope["main"](*request["args"])}
    except BaseException as exc:
        return {"error": f"{type(exc).__name__}: {exc}", "trace": traceback.format_exc()}


def main():
    control = socket.socket(fileno=int(sys.argv[1]))
    ports = [int(port) for port in sys.argv[3].split(",") if port]
    try:
        confine(int(sys.argv[2]))
        fds = namespace.prepare(ports) if ports else []
    except OSError as exc:
        control.sendall(f"failed: {exc}".encode())
        return
    socket.send_fds(control, [b"ready"], fds)
    for fd in fds:
        os.close(fd)
    with control.makefile("rw", encoding="utf-8") as file:
        for line in file:
            file.write(json.dumps(answer(json.loads(line))) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
