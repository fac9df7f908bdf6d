"""Node handlers in the real sandbox: what they can do, how limits end, who shares a process."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import pytest_asyncio
from attacks import write_package

from sandbox import (
    Call,
    Egress,
    Ending,
    Limits,
    Policy,
    Pool,
    PoolSettings,
    Reuse,
)
from sandbox.model import MIB

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def narrow_pool():
    """One slot: whoever is second is where the first one was."""
    pool = Pool(PoolSettings(slots=1, spares_node=1))
    await pool.start()
    yield pool
    await pool.close()


@pytest.fixture
def node_call(tmp_path):
    """`node_call(code, …)`: a call of `exports.handle = …`, in a package of its own."""

    def make(code, name="package", **more):
        folder = write_package(tmp_path / name, "", {"handler.js": f"exports.handle = {code}"})
        return Call(folder, "handler.js:handle", "node", **more)

    return make


def _output(reply):
    assert reply.ending is Ending.RESULT, reply
    assert reply.result["outcome"] == "success", reply
    return reply.result.get("output")


async def test_a_handler_has_its_input_its_context_and_its_logs(pool, node_call):
    code = """async (input, ctx) => {
        console.log('out'); console.error('err'); ctx.log.info('log', { n: 1 });
        require('fs').writeSync(1, 'raw\\n');
        return [input, ctx.context.a, ctx.config.b, ctx.secrets.c, ctx.tenantId] }"""
    seen = []
    call = node_call(
        code, input=[1, "ä"], context={"a": 2}, config={"b": 3}, secrets={"c": "4"}, tenant_id="t"
    )
    reply = await pool.run(call, seen.append)
    assert _output(reply) == [[1, "ä"], 2, 3, "4", "t"]
    lines = [(line.stream, line.level, line.message, dict(line.fields)) for line in reply.logs]
    assert lines[:3] == [
        ("stdout", None, "out", {}),
        ("stderr", None, "err", {}),
        ("log", "info", "log", {"n": 1}),
    ]
    assert ("stdout", None, "raw", {}) in lines
    assert tuple(seen) == reply.logs
    assert reply.usage.peak_memory_bytes > 30 * MIB


async def test_what_computations_need_is_there(pool, node_call):
    """V8's compilers, WebAssembly, libuv's threads, streams, cryptography, zones, a temp."""
    code = """async () => {
        const fs = require('fs'), zlib = require('zlib'), crypto = require('crypto');
        const { promisify } = require('util');
        let sum = 0; for (let n = 0; n < 1e7; n++) sum = (sum + n * 7) % 1000003;
        const module = await WebAssembly.instantiate(Buffer.from('0061736d01000000010701' +
            '60027f7f017f030201000707010361646400000a09010700200020016a0b', 'hex'));
        const { pipeline } = require('stream/promises');
        await pipeline(fs.createReadStream(__filename), zlib.createGzip(),
            fs.createWriteStream('/tmp/x.gz'));
        const text = zlib.gunzipSync(await fs.promises.readFile('/tmp/x.gz')).toString();
        const key = await promisify(crypto.scrypt)('a', 'b', 16);
        const { privateKey } = crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' });
        return [sum, module.instance.exports.add(1, 2),
            text === fs.readFileSync(__filename, 'utf8'),
            key.length,
            crypto.sign('sha256', Buffer.from('x'), privateKey).length > 60,
            new Date(0).toLocaleString('de', { timeZone: 'Asia/Tokyo' }),
            await require('timers/promises').setTimeout(1, 'later'),
            require('os').networkInterfaces(),
            (await require('dns').promises.lookup('localhost')).address] }"""
    reply = await pool.run(node_call(code, policy=Policy(filesystem="temp")))
    assert _output(reply) == [
        3255, 3, True, 16, True, "1.1.1970, 09:00:00", "later",
        {}, "127.0.0.1",
    ]  # fmt: skip


async def test_es_modules_and_packages_load_in_the_sandbox(pool, tmp_path):
    files = {
        "handler.mjs": "import dep from 'dep'; export const handle = async () => dep",
        "node_modules/dep/package.json": '{"main": "lib.js"}',
        "node_modules/dep/lib.js": "module.exports = require('node:path').basename(__dirname)",
    }
    folder = write_package(tmp_path / "package", "", files)
    assert _output(await pool.run(Call(folder, "handler.mjs:handle", "node"))) == "dep"


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("() => { for (;;); }", Ending.TIMEOUT),
        ("() => new Promise((r) => setTimeout(r, 60000))", Ending.TIMEOUT),
        ("() => { for (const a = [];;) a.push(Array(99).fill(0)) }", Ending.MEMORY),
        ("() => { for (const a = [];;) a.push(Buffer.alloc(1e6, 1)) }", Ending.MEMORY),
        ("() => 'x'.repeat(5e6)", Ending.OUTPUT),
        ("() => 10n", Ending.PROTOCOL),
        ("() => require('fs').closeSync(3)", Ending.CRASH),
    ],
)
async def test_limits_end_it_each_with_its_ending(pool, node_call, code, ending):
    limits = Limits(wall_ms=2000 if ending is not Ending.TIMEOUT else 100, memory_bytes=64 * MIB)
    reply = await pool.run(node_call(code, limits=limits))
    assert (reply.ending, reply.result) == (ending, None), reply
    assert reply.message


async def test_it_runs_in_the_least_memory_that_a_manifest_can_ask_for(pool, node_call):
    limits = Limits(memory_bytes=16 * MIB)
    code = "(input) => require('crypto').createHash('sha256').update(input).digest('hex').length"
    assert _output(await pool.run(node_call(code, input="x", limits=limits))) == 64


async def test_a_process_is_used_once_and_temp_is_empty_again(narrow_pool, node_call):
    code = """() => { globalThis.used = (globalThis.used ?? 0) + 1;
        require('fs').writeFileSync('/tmp/x', ''); return globalThis.used }"""
    for _ in range(3):
        reply = await narrow_pool.run(node_call(code, policy=Policy(filesystem="temp")))
        assert _output(reply) == 1


_COUNT = """(input, ctx) => { globalThis.used = (globalThis.used ?? 0) + 1;
    if (input === 'poison') { JSON.parse = () => ({}); Array.prototype.map = () => 'poisoned';
        globalThis.secret = ctx.secrets.key; }
    return [globalThis.used, globalThis.secret ?? null, [1].map((n) => n)] }"""


async def test_a_kept_process_serves_the_same_tenant_only(narrow_pool, node_call):
    """What an operator allows with `Reuse` is shown: the same tenant does find what was left."""
    call = {"reuse": Reuse(), "secrets": {"key": "K"}}
    poisoned = node_call(_COUNT, input="poison", tenant_id="a", **call)
    same = node_call(_COUNT, tenant_id="a", **call)
    other = node_call(_COUNT, tenant_id="b", **call)
    assert _output(await narrow_pool.run(poisoned))[0] == 1
    assert _output(await narrow_pool.run(same)) == [2, "K", "poisoned"]
    assert _output(await narrow_pool.run(other)) == [1, None, [1]]
    assert _output(await narrow_pool.run(same))[0] == 3


async def test_a_kept_process_that_failed_in_every_way_goes_on_or_is_replaced(
    narrow_pool, node_call
):
    code = """(what) => { globalThis.used = (globalThis.used ?? 0) + 1;
        if (what === 'throw') throw new Error('x');
        if (what === 'late') setTimeout(() => { throw new Error('x') });
        if (what === 'late' || what === 'never') return new Promise(() => {});
        if (what === 'crash') require('fs').closeSync(3);
        return globalThis.used }"""
    for what in ("throw", "late", "never"):
        reply = await narrow_pool.run(node_call(code, input=what, tenant_id="f", reuse=Reuse()))
        assert reply.result["error"]["code"] == "HANDLER_ERROR"
    assert _output(await narrow_pool.run(node_call(code, tenant_id="f", reuse=Reuse()))) == 4
    reply = await narrow_pool.run(node_call(code, input="crash", tenant_id="f", reuse=Reuse()))
    assert reply.ending is Ending.CRASH
    assert _output(await narrow_pool.run(node_call(code, tenant_id="f", reuse=Reuse()))) == 1


async def test_after_twenty_crashes_in_a_row_the_next_one_succeeds(narrow_pool, node_call):
    crash = node_call("() => require('fs').closeSync(3)", limits=Limits(wall_ms=5000))
    for _ in range(20):
        assert (await narrow_pool.run(crash)).ending is Ending.CRASH
    assert _output(await narrow_pool.run(node_call("() => 101", name="fine"))) == 101


# --- network ---------------------------------------------------------------------------------


# Of nobody: CN=localhost, for a hundred years.
_CERTIFICATE = """
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg37r7BbD7tGPpV97j
vm6imP1MmhaRm61Fs8sba/LTpnChRANCAATto1CbQCFRlC7nBxFqI0EOnKEoSdmq
LrSVH1JJNoq4N1E4cNzZZoanLALhxSC5iBMV5EYqoSvCyCJz5rsG+WVu
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBfzCCASWgAwIBAgIUDYpSVmXXBF6pIoL6imNX2iI3dJ4wCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzA1NTc0NloYDzIxMjYxMDMw
MDU1NzQ2WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATto1CbQCFRlC7nBxFqI0EOnKEoSdmqLrSVH1JJNoq4N1E4cNzZZoan
LALhxSC5iBMV5EYqoSvCyCJz5rsG+WVuo1MwUTAdBgNVHQ4EFgQUKEt006sDOFI4
r/qATUkoZAvmNAIwHwYDVR0jBBgwFoAUKEt006sDOFI4r/qATUkoZAvmNAIwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiEAkJWIKX7bW9R1YWzNq5+j
3cNx8nWa83IJyNMbTT5bkNACIEtSB6URODjg6Srgb7AD0BYRX1marGyWtP4EArXw
YhnD
-----END CERTIFICATE-----
"""


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    await writer.drain()
    writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def online(tmp_path_factory):
    """A pool whose gateway serves the ports of an HTTP and an HTTPS server of the host."""
    pem = tmp_path_factory.mktemp("certificate") / "both.pem"
    pem.write_text(_CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    plain = await asyncio.start_server(_answer, "127.0.0.1", 0)
    secure = await asyncio.start_server(_answer, "127.0.0.1", 0, ssl=context)
    ports = [server.sockets[0].getsockname()[1] for server in (plain, secure)]
    pool = Pool(PoolSettings(slots=1, ports=tuple(ports)))
    await pool.start()
    layers = {layer.name: layer for layer in pool.layers()}
    yield pool, ports, layers["network"]
    await pool.close()
    for server in (plain, secure):
        server.close()
        await server.wait_closed()


_CLIENTS = """async ([http, https, allowed]) => {
    const tell = async (what) => { try { return await what() } catch (error) {
        return 'refused: ' + (error.cause ?? error).code } };
    const get = (module, port, more) => new Promise((resolve, reject) => require(module).get(
        { host: '127.0.0.1', port, path: '/', ...more }, (response) => {
            let text = ''; response.on('data', (part) => { text += part });
            response.on('end', () => resolve(text)); }).on('error', reject));
    return [
        await tell(async () => (await fetch(`http://127.0.0.1:${http}/`)).text()),
        await tell(() => get('http', http)),
        await tell(() => get('https', https, { rejectUnauthorized: false })),
    ] }"""


async def test_ordinary_clients_go_through_the_gateway(online, node_call):
    pool, ports, layer = online
    if not layer.available:
        pytest.skip(f"no network here, so this is NOT tested: {layer.detail}")
    policy = Policy(network=Egress(private=("127.0.0.0/8",)))
    reply = await pool.run(node_call(_CLIENTS, input=ports, policy=policy))
    assert _output(reply) == ["hello"] * 3
    assert reply.traffic is not None
    assert sum(contact.connections for contact in reply.traffic.contacts) == 3


async def test_and_reach_nothing_inside_unless_the_operator_says_so(online, node_call):
    pool, ports, layer = online
    if not layer.available:
        pytest.skip(f"no network here, so this is NOT tested: {layer.detail}")
    reply = await pool.run(node_call(_CLIENTS, input=ports, policy=Policy(network=Egress())))
    assert all(said.startswith("refused: ECONN") for said in _output(reply)), reply
    assert reply.traffic is not None
    assert sum(denial.count for denial in reply.traffic.denials) == 3
