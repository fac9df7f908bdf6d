"""The handlers that come with FlowMonkey, in the real sandbox; HTTP against a real server here."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import shutil
import stat
from collections.abc import AsyncIterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flowmonkeyd.documents.flow import parse_flow
from flowmonkeyd.shipping import TYPES, package_of
from sandbox import Call, Egress, Ending, Policy, Pool, PoolSettings
from tests.crash.daemon import Daemon
from tests.flows import doc, step

NEEDS_NODE = pytest.mark.skipif(shutil.which("node") is None, reason="NO node: nothing is run")
_ITEMS = [{"name": "a", "price": 5, "tags": ["x"]}, {"name": "b", "price": 20}, {"name": "c"}]
_DEAR = {"path": "price", "op": "gt", "value": 10}


class _Server(ThreadingHTTPServer):
    """Answers as its path says, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.down = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        size = int(self.headers.get("content-length", 0))
        body = self.rfile.read(size)
        self.server.asked.append((self.command, self.path, dict(self.headers.items()), body))
        word = self.path.strip("/").partition("?")[0]
        status, found = 200, json.dumps({"path": self.path}).encode()
        headers = {"Content-Type": "application/json"}
        if word.isdecimal():
            status = int(word)
        elif word == "again":
            status, headers = 302, {"Location": "/text"}
        elif word == "loop":
            status, headers = 302, {"Location": "/loop"}
        elif word == "text":
            found, headers = (
                "grün".encode("latin-1"),
                {"Content-Type": "text/plain; charset=latin-1"},
            )
        elif word == "large":
            found = b"x" * 600_000
        elif word == "down" and self.server.down > 0:
            self.server.down -= 1
            status = 503
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(len(found))}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(found)

    do_POST = do_PUT = do_GET

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
async def server() -> AsyncIterator[_Server]:
    with _Server() as server:
        serving = asyncio.get_running_loop().run_in_executor(None, server.serve_forever)
        yield server
        await asyncio.to_thread(server.shutdown)
        await serving


@pytest.fixture
async def run(tmp_path, server):
    """`run(type, config, input, secrets)`: the reply's result, or its ending."""
    async with Pool(PoolSettings(slots=1, spares=2, ports=(80, 443, server.server_port))) as pool:

        async def once(handler_type, config, input=None, secrets=None, has_input=True):
            folder = tmp_path / handler_type
            if not folder.exists():
                folder.mkdir()
                for name, content in package_of(handler_type).items():
                    (folder / name).write_bytes(content)
            network = (
                Egress(private=("127.0.0.0/8",)) if handler_type in ("http", "webhook") else None
            )
            handler = json.loads((folder / "handler.json").read_text())["handler"]
            call = Call(
                str(folder),
                handler["entrypoint"],
                handler["runtime"],
                config=config,
                input=input,
                has_input=has_input,
                secrets=secrets or {},
                policy=Policy(network=network),
                execution_id="e1",
                step_id="s1",
            )
            reply = await pool.run(call)
            assert reply.ending is Ending.RESULT, reply
            return reply.result

        yield once


def test_the_packages_are_the_same_bytes_each_time_and_list_their_files():
    for handler_type in TYPES:
        files = package_of(handler_type)
        assert files == package_of(handler_type)
        listed = json.loads(files["handler.json"])["package"]["files"]
        assert listed.keys() == files.keys() - {"handler.json"}


@pytest.mark.parametrize(
    ("operations", "given", "output"),
    [
        ([{"op": "pick", "keys": ["name", "no"]}], _ITEMS[0], {"name": "a"}),
        ([{"op": "omit", "keys": ["tags", "price"]}], _ITEMS[0], {"name": "a"}),
        ([{"op": "map", "to": "$.name"}], _ITEMS, ["a", "b", "c"]),
        ([{"op": "map", "to": {"n": "name", "t": "tags.0"}}], _ITEMS[:1], [{"n": "a", "t": "x"}]),
        ([{"op": "map", "to": "price"}], _ITEMS, [5, 20, None]),
        ([{"op": "filter", "where": _DEAR}], _ITEMS, [_ITEMS[1]]),
        ([{"op": "filter", "where": {"path": "price", "op": "notExists"}}], _ITEMS, [_ITEMS[2]]),
        ([{"op": "filter", "where": {"path": "name", "op": "lt", "value": 3}}], _ITEMS, []),
        ([{"op": "reduce", "by": "sum", "path": "price"}], _ITEMS, 25),
        ([{"op": "reduce", "by": "average", "path": "price"}], _ITEMS, 12.5),
        ([{"op": "reduce", "by": "count"}], _ITEMS, 3),
        ([{"op": "reduce", "by": "max", "path": "x"}], _ITEMS, None),
        ([{"op": "reduce", "by": "join", "path": "name", "separator": "-"}], _ITEMS, "a-b-c"),
        ([{"op": "merge", "with": {"a": {"c": 2}}}], {"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}),
        ([{"op": "filter", "where": _DEAR}, {"op": "map", "to": "name"}], _ITEMS, ["b"]),
        ([], [1], [1]),
    ],
)
async def test_transform(run, operations, given, output):
    result = await run("transform", {"operations": operations}, given)
    assert result.get("output") == output, result


@pytest.mark.parametrize(
    ("config", "given", "code", "says"),
    [
        ({}, 1, "INPUT_VALIDATION_FAILED", "either operations or code"),
        ({"operations": [], "code": ""}, 1, "INPUT_VALIDATION_FAILED", "either"),
        ({"operations": {}}, 1, "INPUT_VALIDATION_FAILED", "a list"),
        ({"operations": [{"op": "eval"}]}, 1, "INPUT_VALIDATION_FAILED", "operations[0]: "),
        ({"operations": [{"op": "pick", "key": 1}]}, {}, "INPUT_VALIDATION_FAILED", "'key'"),
        ({"operations": [{"op": "pick", "keys": ["a"]}]}, 1, "TRANSFORM_ERROR", "an object"),
        ({"operations": [{"op": "reduce", "by": "sum"}]}, ["a"], "TRANSFORM_ERROR", "numbers"),
        ({"code": "output ="}, 1, "INVALID_EXPRESSION", "line 1"),
        ({"code": "x = 1"}, 1, "INVALID_EXPRESSION", "does not set output"),
        ({"code": "output = 1 / 0"}, 1, "TRANSFORM_ERROR", "ZeroDivisionError"),
        ({"code": "open('/etc/shadow')"}, 1, "TRANSFORM_ERROR", "FileNotFoundError"),
    ],
)
async def test_transform_refuses(run, config, given, code, says):
    result = await run("transform", config, given)
    assert (result["outcome"], result["error"]["code"]) == ("failure", code), result
    assert says in result["error"]["message"]
    assert result["error"]["retryable"] is False


async def test_transform_runs_code(run):
    code = "output = sorted(one['name'] for one in input)"
    assert (await run("transform", {"code": code}, _ITEMS))["output"] == ["a", "b", "c"]


@NEEDS_NODE
@pytest.mark.parametrize(
    ("code", "given", "output"),
    [
        ("output = input.map((one) => one.name).join()", _ITEMS, "a,b,c"),
        ("const output = { n: input.n + 1 };", {"n": 1}, {"n": 2}),
        ("var output = null // nothing", {}, None),
        ("for (const one of input) if (one > 1) { output = one; break; }", [1, 2, 3], 2),
    ],
)
async def test_transform_runs_javascript(run, code, given, output):
    result = await run("transform-js", {"code": code}, given)
    assert (result["outcome"], result["output"]) == ("success", output)


@NEEDS_NODE
@pytest.mark.parametrize(
    ("config", "code", "says"),
    [
        ({}, "INPUT_VALIDATION_FAILED", "give code, as text, and nothing else"),
        ({"code": 3}, "INPUT_VALIDATION_FAILED", "give code, as text, and nothing else"),
        ({"code": "", "operations": []}, "INPUT_VALIDATION_FAILED", "give code, as text, and"),
        ({"code": "let a;\nlet b = ;"}, "INVALID_EXPRESSION", "code: line 2: Unexpected token ';'"),
        ({"code": "input + 1"}, "INVALID_EXPRESSION", "code: it does not set output"),
        ({"code": "output = input.a.b"}, "TRANSFORM_ERROR", "code: TypeError: Cannot read prop"),
        ({"code": "throw 7"}, "TRANSFORM_ERROR", "code: 7"),
        ({"code": "output = require('fs')"}, "TRANSFORM_ERROR", "require is not defined"),
    ],
)
async def test_javascript_that_does_not_do_is_refused(run, config, code, says):
    result = await run("transform-js", config, 1)
    assert (result["outcome"], result["error"]["code"]) == ("failure", code), result
    assert says in result["error"]["message"]
    assert result["error"]["retryable"] is False


async def test_batch_tells_each_item(run):
    config = {"operations": [{"op": "pick", "keys": ["name"]}], "items": "all"}
    result = await run("batch", config, {"all": [_ITEMS[0], 7]})
    output = result["output"]
    assert (output["total"], output["succeeded"], output["failed"]) == (2, 1, 1)
    assert output["results"] == [{"name": "a"}, None]
    assert output["errors"][0] | {"message": ""} == {
        "index": 1,
        "code": "TRANSFORM_ERROR",
        "message": "",
    }
    stopped = await run("batch", {**config, "stopOnError": True}, {"all": [7]})
    assert stopped["error"]["code"] == "ITEM_ERROR"
    for bad in ({**config, "item": 1}, {"items": "no", "code": "output = 1"}, {"items": "all"}):
        refused = await run("batch", bad, {"all": [1]})
        assert refused["error"]["code"] == "INPUT_VALIDATION_FAILED", refused


async def test_http_asks_and_tells(run, server):
    base = server.url
    result = await run(
        "http",
        {
            "url": f"{base}/x?a=1",
            "query": {"b": ["2", 3]},
            "headers": {"X-A": "b"},
            "auth": "bearer",
        },
        {"json": {"n": 1}, "method": "put"},
        {"token": "t0ken"},
    )
    output = result["output"]
    assert (output["status"], output["body"]) == (200, {"path": "/x?a=1&b=2&b=3"})
    method, _, headers, body = server.asked[-1]
    assert (method, json.loads(body), headers["X-A"]) == ("PUT", {"n": 1}, "b")
    assert headers["Authorization"] == "Bearer t0ken"
    text = (await run("http", {"url": f"{base}/again"}, has_input=False))["output"]
    assert (text["body"], text["url"]) == ("grün", f"{base}/text")


@pytest.mark.parametrize(
    ("path", "change", "code", "retryable"),
    [
        ("/404", {}, "HTTP_ERROR", False),
        ("/503", {}, "HTTP_ERROR", True),
        ("/429", {}, "HTTP_ERROR", True),
        ("/again", {"maxRedirects": 0}, "HTTP_ERROR", False),
        ("/loop", {"maxRedirects": 3}, "HTTP_ERROR", False),
        ("/large", {}, "RESPONSE_TOO_LARGE", False),
        ("/text", {"parse": "json"}, "INVALID_RESPONSE", False),
        ("/", {"urll": 1}, "INPUT_VALIDATION_FAILED", False),
        ("/", {"url": "file:///etc/passwd"}, "INPUT_VALIDATION_FAILED", False),
        ("/", {"headers": {"a": "b\r\nc: d"}}, "INPUT_VALIDATION_FAILED", False),
        ("/", {"auth": "bearer"}, "INPUT_VALIDATION_FAILED", False),
        ("/", {"timeoutMs": 0}, "INPUT_VALIDATION_FAILED", False),
        ("/", {"url": "http://169.254.169.254/"}, "REQUEST_FAILED", True),
        ("/", {"url": "https://127.0.0.1:443/"}, "REQUEST_FAILED", True),
    ],
)
async def test_http_refuses(run, server, path, change, code, retryable):
    result = await run("http", {"url": server.url + path, **change}, has_input=False)
    assert (result["error"]["code"], result["error"]["retryable"]) == (code, retryable), result
    if code == "HTTP_ERROR":
        assert result["error"]["details"]["status"] in (404, 503, 429, 302)


async def test_http_accepts_what_it_is_told_to(run, server):
    result = await run("http", {"url": f"{server.url}/404", "acceptStatus": [404]}, has_input=False)
    assert result["output"]["status"] == 404


async def test_webhook_signs_and_tries_again(run, server):
    server.down = 2
    config = {"url": f"{server.url}/down", "event": "order.paid", "backoffMs": 1}
    result = await run("webhook", config, {"id": 7}, {"signingKey": "key"})
    assert result["output"] == {"status": 200, "tries": 3}
    _, _, headers, body = server.asked[-1]
    assert json.loads(body)["payload"] == {"id": 7}
    assert headers["Idempotency-Key"] == server.asked[0][2]["Idempotency-Key"] == "e1.s1"
    at, _, digest = headers["X-Flowmonkey-Signature"].partition(",v1=")
    wanted = hmac.new(b"key", at.removeprefix("t=").encode() + b"." + body, hashlib.sha256)
    assert digest == wanted.hexdigest()


@pytest.mark.parametrize(
    ("path", "change", "code", "tries"),
    [
        ("/503", {"retries": 1, "backoffMs": 1}, "HTTP_ERROR", 2),
        ("/400", {}, "HTTP_ERROR", 1),
        ("/again", {}, "HTTP_ERROR", 1),
        ("", {"url": "http://127.0.0.1:443/", "retries": 1, "backoffMs": 1}, "REQUEST_FAILED", 2),
    ],
)
async def test_webhook_gives_up(run, server, path, change, code, tries):
    result = await run("webhook", {"url": server.url + path, "event": "e", **change}, 1)
    assert (result["error"]["code"], result["error"]["details"]["tries"]) == (code, tries), result


@pytest.mark.slow
def test_what_an_operator_does_not_allow_is_told_at_the_start(tmp_path: Path) -> None:
    limits = {"FLOWMONKEY_HANDLERS__ALLOW__CPU": "0.2", "FLOWMONKEY_SHIPPED__INSTALL": "true"}
    daemon = Daemon(tmp_path, **limits)
    try:
        daemon.start()
        with closing(daemon.client()) as client:
            assert client.must("GET", "/v1/handlers")["items"] == []
        assert daemon.stop() == 0
        told = [line for line in daemon.log.read_text().splitlines() if "is not published" in line]
        assert len(told) == len(TYPES)
        assert all("raise handlers.allow.cpu from 0.2" in line for line in told), told
    finally:
        daemon.close()


def test_the_examples_of_the_page_are_steps() -> None:
    page = (Path(__file__).parents[2] / "docs/shipped.md").read_text()
    steps = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    assert [one["type"] for one in steps] == ["http", "transform", "transform-js"]
    for one in steps:
        flow = {"id": "a", "version": "1.0.0", "initialStepId": one["id"]}
        parse_flow({**flow, "steps": {one["id"]: one}})


def test_a_daemon_publishes_them_signed_by_its_installation_and_runs_them(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, FLOWMONKEY_SHIPPED__INSTALL="true")
    code = {"code": "output = input * 2"}
    try:
        for _ in range(2):  # the second start finds them
            daemon.start()
            with closing(daemon.client()) as client:
                listed = {row["type"]: row for row in client.must("GET", "/v1/handlers")["items"]}
                assert listed.keys() == set(TYPES)
                shown = client.must("GET", "/v1/handlers/http/1.0.0")
                assert shown["publisher"] == "flowmonkey", shown
                assert shown["signature"]["status"] == "trusted", shown["signature"]
                flow = doc(
                    step("a", "transform", config=code, input={"type": "key", "key": "n"}), id="t"
                )
                client.must("PUT", "/v1/flows", flow)
                body = {"flow": "t", "context": {"n": 21}}
                done = client.must("POST", "/v1/executions?waitMs=20000", body)
                assert done["status"] == "completed", done
                (entry,) = client.must("GET", f"/v1/executions/{done['id']}/history")["items"]
                assert (entry["output"], entry["billing"]["tier"]) == (42, "small")
            assert stat.S_IMODE((daemon.data / "shipped.key").stat().st_mode) == 0o600
            assert daemon.stop() == 0
    finally:
        daemon.close()
