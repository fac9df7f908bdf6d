"""What a user would write: the standard clients, each as its documentation says.

A package of `test_clients`: the libraries lie beside this file, and the CA that the servers'
certificate is from. Every `get_with_…` asks for `url` `times` times in one session and answers
`{"said": [text, …]}`, or `{"error": …}` with the class and text of what it raised; nothing in here
knows of a gateway.
"""

import asyncio
import functools
import hashlib
import inspect
import ssl
import urllib.request
from pathlib import Path

CA = str(Path(__file__).with_name("ca.pem"))


def handler(get):
    """`get(url, times, verify)`, or a coroutine function like it, as a handler's function."""

    @functools.wraps(get)
    async def handle(input, ctx):
        verify = CA if input.get("verify", True) else None  # None: what the client has of itself
        try:
            said = get(input["url"], input.get("times", 1), verify)
            return {"said": await said if inspect.isawaitable(said) else said}
        except Exception as exc:
            return {"error": f"{type(exc).__name__}: {exc}"}

    return handle


@handler
def get_with_urllib(url, times, verify):
    said = []
    for _ in range(times):
        context = ssl.create_default_context(cafile=verify)
        with urllib.request.urlopen(url, context=context, timeout=5) as answer:
            said.append(answer.read().decode())
    return said


@handler
def get_with_requests(url, times, verify):
    import requests

    with requests.Session() as session:
        return [session.get(url, verify=verify, timeout=5).text for _ in range(times)]


@handler
def get_with_httpx(url, times, verify):
    import httpx

    context = ssl.create_default_context(cafile=verify)
    with httpx.Client(verify=context, follow_redirects=True, timeout=5) as client:
        return [client.get(url).text for _ in range(times)]


@handler
async def get_with_async_httpx(url, times, verify):
    import httpx

    context = ssl.create_default_context(cafile=verify)
    async with httpx.AsyncClient(verify=context, follow_redirects=True, timeout=5) as client:
        return [(await client.get(url)).text for _ in range(times)]


@handler
async def get_with_aiohttp(url, times, verify):
    import aiohttp

    context = ssl.create_default_context(cafile=verify)
    timeout = aiohttp.ClientTimeout(total=5)
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        said = []
        for _ in range(times):
            async with session.get(url) as answer:
                said.append(await answer.text())
        return said


@handler
async def talk_with_aiohttp(url, times, verify):
    """Over a WebSocket."""
    import aiohttp

    context = ssl.create_default_context(cafile=verify)
    async with aiohttp.ClientSession() as session, session.ws_connect(url, ssl=context) as socket:
        said = []
        for number in range(times):
            await socket.send_str(f"message {number}")
            said.append(await socket.receive_str(timeout=5))
        return said


@handler
def digest_with_requests(url, times, verify):
    """Of a large body, taken in pieces as pip does."""
    import requests

    digest = hashlib.sha256()
    with requests.get(url, verify=verify, stream=True, timeout=10) as answer:
        for piece in answer.iter_content(1 << 16):
            digest.update(piece)
    return [digest.hexdigest()]


@handler
async def get_at_once_with_aiohttp(url, times, verify):
    import aiohttp

    connector = aiohttp.TCPConnector(limit=times)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def get():
            async with session.get(url) as answer:
                return await answer.text()

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(get()) for _ in range(times)]
        return [one.result() for one in asked]
