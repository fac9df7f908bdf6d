"""A daemon's part of a container's network in a process of its own, to be killed, or another user.

`python opener.py PIDFD PORT [URL]` opens a gateway to loopback for the process that PIDFD means and
prints "open", or why it cannot; then it stays until its standard input ends. With URL it starts the
container itself, as `unshare` does, has it get URL, and prints what came.
"""

import asyncio
import ctypes
import os
import sys

from sandbox.confine import LayerFailed
from sandbox.egress.container import open_gateway
from sandbox.model import Egress

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
GET = """
import sys, urllib.request
sys.stdin.readline()
print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())
"""


def unshare():
    """In the child, before it becomes the program: a network namespace, and two user namespaces,
    one in the other, as Podman without root makes them."""
    uid, gid = os.getuid(), os.getgid()
    said = {"setgroups": "deny", "gid_map": f"{gid} {gid} 1", "uid_map": f"{uid} {uid} 1"}
    for flags in (NEW_USER, NEW_USER | NEW_NETWORK):
        if ctypes.CDLL(None, use_errno=True).unshare(flags):
            raise OSError(ctypes.get_errno(), "unshare")
        for name, text in said.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


async def get(url, port):
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    command = (sys.executable, "-I", "-S", "-c", GET, url)
    inside = await asyncio.create_subprocess_exec(*command, **pipes, preexec_fn=unshare)
    pidfd = os.pidfd_open(inside.pid)
    gateway = await open_gateway(pidfd, [port])
    gateway.open(Egress(private=("127.0.0.0/8",)))
    said, _ = await inside.communicate(b"\n")
    gateway.close()
    return said.decode().strip()


async def main(pidfd, port, url=""):
    try:
        if url:
            print(await get(url, int(port)), flush=True)
            return
        gateway = await open_gateway(int(pidfd), [int(port)])
    except LayerFailed as exc:
        print(exc, flush=True)
        return
    gateway.open(Egress(private=("127.0.0.0/8",)))
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
