"""Attacks with sockets: the network where there is none, Unix sockets, servers, the gateway.

Each says what a success would look like. Without layers nothing listens where they knock, so a
refusal by the network itself (ECONNREFUSED) shows that it was reached.
"""

from __future__ import annotations

from attacks.attack import TEMP, Attack

from node_attacks.words import tried, unshimmed
from sandbox import Egress, Limits, Policy

__all__ = ["NETWORK"]

_INTERFACES = unshimmed("return Object.keys(os.networkInterfaces()).length")
_ONLINE = Policy(network=Egress())
# What is inside, in every spelling that a client takes.
_INSIDE = (
    "['127.0.0.1', 'localhost', '0x7f.1', '2130706433', '0177.0.0.1', '[::1]', '0.0.0.0',"
    " '[::ffff:127.0.0.1]', '169.254.169.254', '10.0.0.1', '192.168.0.1', '[64:ff9b::7f00:1]',"
    " '[2002:7f00:1::]']"
)


def _reached(what: str) -> str:
    return tried(f"return [true, 'ECONNREFUSED', 'ENOENT'].includes(await {what})")


NETWORK: tuple[Attack, ...] = (
    Attack("tcp", "the host's loopback", _reached("event(net.connect(9, '127.0.0.1'), 'connect')")),
    Attack(
        "tcp6", "the host's loopback, IPv6", _reached("event(net.connect(9, '::1'), 'connect')")
    ),
    Attack(
        "http",
        "an HTTP server of the host",
        _reached("event(require('http').get('http://127.0.0.1:9/'), 'response')"),
    ),
    Attack(
        "http2",
        "an HTTP/2 server of the host",
        _reached("event(require('http2').connect('http://127.0.0.1:9'), 'connect')"),
    ),
    Attack(
        "tls",
        "a TLS server of the host",
        _reached("event(require('tls').connect(9, '127.0.0.1'), 'secureConnect')"),
    ),
    Attack(
        "fetch",
        "a server of the host by fetch",
        _reached("fetch('http://127.0.0.1:88/').then(() => true, (error) => error.cause.code)"),
    ),
    Attack(
        "fetch-metadata",
        "the cloud's metadata",
        tried(
            "return (await fetch('http://169.254.169.254/latest/', "
            "{ signal: AbortSignal.timeout(500) })).ok"
        ),
        open=False,
    ),
    Attack(
        "name",
        "the address of a name, which carries data out",
        tried("return (await require('dns').promises.lookup('example.com')).address"),
        open=False,
    ),
    Attack(
        "name-server",
        "an answer of a name server",
        tried(
            "const dns = new (require('dns').promises.Resolver)({ timeout: 100, tries: 1 });\n"
            "return await dns.resolve4('example.com')"
        ),
        open=False,
    ),
    Attack(
        "udp",
        "a datagram sent",
        tried(
            "const socket = require('dgram').createSocket('udp4');\n"
            "return new Promise((resolve) => { socket.on('error', () => resolve(false));\n"
            "    socket.send('x', 9, '127.0.0.1',\n"
            "        (error) => { socket.close(); resolve(!error) }) })"
        ),
    ),
    Attack(
        "serve",
        "a port that others can connect to",
        tried(
            "const server = net.createServer(); server.listen(0, '127.0.0.1');\n"
            "const open = await event(server, 'listening'); server.close(); return open === true"
        ),
    ),
    Attack(
        "serve-unix",
        "a Unix socket in temp",
        tried(
            "const server = net.createServer(); server.listen(`/tmp/x-${process.pid}.sock`);\n"
            "const open = await event(server, 'listening'); server.close(); return open === true"
        ),
        policy=TEMP,
    ),
    Attack(
        "serve-abstract",
        "an abstract Unix socket, which no folder hides",
        tried(
            "const server = net.createServer(); server.listen(`\\0x-${process.pid}`);\n"
            "const open = await event(server, 'listening'); server.close(); return open === true"
        ),
    ),
    Attack(
        "unix",
        "a Unix socket of the daemon's",
        _reached("event(net.connect('/run/flowmonkey/nothing.sock'), 'connect')"),
    ),
    Attack(
        "unix-abstract",
        "an abstract Unix socket of the host's",
        _reached("event(net.connect('\\0nothing'), 'connect')"),
    ),
    Attack("interfaces", "the host's addresses, by netlink", _INTERFACES[0], files=_INTERFACES[1]),
    Attack(
        "connections",
        "who else talks to whom",
        tried(
            "return ['tcp', 'udp', 'unix'].some(name => {\n"
            "    try { return /\\n.*\\n/.test(fs.readFileSync('/proc/net/' + name, 'utf8')) }\n"
            "    catch {} })"
        ),
        open=False,  # a host may have none at all
    ),
    Attack(
        "descriptor-as-socket",
        "the channel as a socket that connects elsewhere",
        tried(
            "const socket = new net.Socket({ fd: 3 });\n"
            "socket.connect(9, '127.0.0.1'); return await event(socket, 'connect') === true"
        ),
        open=False,
    ),
    # with network on
    Attack(
        "online-inside",
        "an answer from inside, by any spelling of it",
        tried(
            f"for (const host of {_INSIDE}) try {{\n"
            "    await fetch(`http://${host}/`, { signal: AbortSignal.timeout(400) });\n"
            "    return true\n"
            "} catch {}"
        ),
        open=False,
        policy=_ONLINE,
    ),
    Attack(
        "online-other-ports",
        "a port that the gateway does not serve",
        tried(
            "for (const port of [22, 25, 3306, 5432, 6379, 11211])\n"
            "    if (await event(net.connect(port, '127.0.0.1'), 'connect') === true) return true"
        ),
        open=False,
        policy=_ONLINE,
    ),
    Attack(
        "online-serve",
        "a server although there is a network",
        tried(
            "const server = net.createServer(); server.listen(0, '127.0.0.1');\n"
            "const open = await event(server, 'listening'); server.close(); return open === true"
        ),
        open=False,
        policy=_ONLINE,
    ),
    Attack(
        "online-unix",
        "a Unix socket although there is a network",
        _reached("event(net.connect('/run/flowmonkey/nothing.sock'), 'connect')"),
        open=False,
        policy=_ONLINE,
        limits=Limits(wall_ms=5_000),
    ),
)
