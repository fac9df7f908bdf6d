"""What the gateway costs: an HTTP GET through it against a direct one on loopback, in turns.

The server is a process of its own, the client too (in new user and network namespaces, or in
none), the gateway is alone in this one's event loop, asyncio's and uvloop's. Prints p50 and p99 of
a new connection for each GET, of one that is kept, and the rate of 64 MiB over one connection.
Usage: python benchmarks/gateway.py [ROUNDS], run from the repository's root.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sandbox.egress.gateway import Gateway
from sandbox.model import MIB, Egress
from tests.egress.conftest import LOOPBACK, Cell, process_inside

_GETS = 50
_BULK = 64 * MIB
_SERVER = f"""
import asyncio
ANSWER = b"HTTP/1.1 200 OK\\r\\ncontent-length: 1000\\r\\n\\r\\n" + bytes(1000)
class Web(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        if data.startswith(b"BULK"):
            self.transport.write(bytes({_BULK}))
            self.transport.close()
            return
        self.transport.write(ANSWER)
        if b"close" in data:
            self.transport.close()
async def main():
    server = await asyncio.get_running_loop().create_server(Web, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
_CLIENT = f"""
import socket, time
def main(port):
    new, kept = [], []
    for _ in range({_GETS}):
        started = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port)) as one:
            one.sendall(b"GET / HTTP/1.1\\r\\nconnection: close\\r\\n\\r\\n")
            while one.recv(65536): pass
        new.append((time.perf_counter() - started) * 1000)
    with socket.create_connection(("127.0.0.1", port)) as one:
        for _ in range({_GETS}):
            started = time.perf_counter()
            one.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
            left = 1041
            while left: left -= len(one.recv(65536))
            kept.append((time.perf_counter() - started) * 1000)
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.sendall(b"BULK")
        while one.recv(1 << 18): pass
    return [new, kept, time.perf_counter() - started]
"""


async def measure(rounds: int, port: int) -> None:
    """Both sides in turns, then the rows."""
    ours, direct = ([], [], []), ([], [], [])
    outside = [sys.executable, "-I", "-S", "-c", f"{_CLIENT}\nprint(main({port}))"]
    async with process_inside([port], 65534) as (fds, parts):
        gateway = Gateway(fds, [port])
        cell = Cell(gateway, None, *parts)
        try:
            for _ in range(rounds):
                visit = Egress(private=LOOPBACK, connections=1024, bytes=1024 * MIB)
                result, _traffic = await cell.visit(visit, _CLIENT, port)
                run = await asyncio.create_subprocess_exec(*outside, stdout=subprocess.PIPE)
                plain = eval((await run.communicate())[0])
                for figures, (new, kept, bulk) in ((ours, result), (direct, plain)):
                    figures[0].extend(new)
                    figures[1].extend(kept)
                    figures[2].append(_BULK / MIB / bulk)
        finally:
            gateway.close()
    for name, mine, theirs in (
        ("GET, new connection", ours[0], direct[0]),
        ("GET, kept connection", ours[1], direct[1]),
    ):
        mine, theirs = sorted(mine), sorted(theirs)
        high, plain_high = (each[int(len(each) * 0.99)] for each in (mine, theirs))
        middle, plain_middle = statistics.median(mine), statistics.median(theirs)
        print(
            f"{name:22} p50 {middle:6.3f} ms against {plain_middle:6.3f} direct"
            f" = {middle / plain_middle:4.2f}, p99 {high:6.3f} against {plain_high:6.3f}"
        )
    rate, plain_rate = statistics.median(ours[2]), statistics.median(direct[2])
    print(f"64 MiB at once         {rate:.0f} MiB/s against {plain_rate:.0f} direct")


def main() -> None:
    """Run with asyncio's loop, then with uvloop's."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE) as server:
        try:
            port = int(server.stdout.readline())
            for name, loop in (
                ("asyncio", asyncio.new_event_loop),
                ("uvloop", uvloop.new_event_loop),
            ):
                print(name)
                with asyncio.Runner(loop_factory=loop) as runner:
                    runner.run(measure(rounds, port))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
