"""The gateway from a handler's side: what gets through, unchanged, and what is refused."""

from sandbox.model import Egress
from tests.egress.conftest import LOOPBACK

GET = """
    import urllib.request
    def main(url):
        with urllib.request.urlopen(url, timeout=5) as answer:
            return [answer.status, answer.read().decode()]
"""


async def say_hello(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
    await writer.drain()


async def test_a_standard_client_works_unchanged(cell, server):
    port = await server(say_hello)
    inside = await cell(port)
    url = f"http://127.0.0.1:{port}/"
    result, traffic = await inside.visit(Egress(private=LOOPBACK), GET, url)
    assert result == [200, "hello"]
    (contact,) = traffic.contacts
    assert (contact.host, contact.address, contact.port) == ("127.0.0.1", "127.0.0.1", port)
    assert traffic.denials == ()
