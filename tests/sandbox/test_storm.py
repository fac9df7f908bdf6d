"""Many hostile handlers at once, between good ones: each good one gets its own answer.

And what is of a pool on the whole host, which the battery in its namespaces cannot see: its
control groups are gone with it.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest
from attacks import ATTACKS, survivors, write_package

from sandbox import Call, Ending, Limits, Pool, PoolSettings

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Of every kind some, without those that run until their deadline.
_STORM = [one for one in ATTACKS if one.policy.network is None and not one.name.startswith("late")]
_WRAP = "\ndef handle(input, ctx):\n    return bool(attack())\n"
_GOOD = """
import os
def handle(input, ctx):
    ctx.log.info(f"log {input}")
    return {"given": input, "secret": ctx.secrets["key"], "tenant": ctx.tenant_id}
"""


def _groups() -> set[Path]:
    return set(Path("/sys/fs/cgroup").glob(f"**/flowmonkey-{os.getpid()}-*"))


@pytest.mark.slow
async def test_good_calls_get_their_own_answers_in_a_storm(tmp_path):
    before = _groups()
    pool = Pool(PoolSettings(slots=4))
    await pool.start()
    layers = {layer.name: layer.available for layer in pool.layers()}
    assert (_groups() > before) is layers["cgroup"]
    good = write_package(tmp_path / "good", _GOOD)
    endings = Counter[str]()

    async def hostile(number: int) -> None:
        one = _STORM[number]
        code = one.code if one.won else one.code + _WRAP
        package = write_package(tmp_path / f"hostile-{number}", code, dict(one.files))
        limits = Limits(wall_ms=500, memory_bytes=32 << 20)
        reply = await pool.run(Call(package, limits=limits, policy=one.policy, tenant_id="evil"))
        endings[str(reply.ending)] += 1

    async def decent(number: int) -> None:
        secrets = {"key": f"secret {number}"}
        reply = await pool.run(Call(good, input=number, tenant_id=f"t{number}", secrets=secrets))
        assert reply.ending is Ending.RESULT, reply
        assert reply.result is not None
        wanted = {"given": number, "secret": f"secret {number}", "tenant": f"t{number}"}
        assert reply.result["output"] == wanted
        assert [line.message for line in reply.logs] == [f"log {number}"]

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(len(_STORM)):
                group.create_task(hostile(number))
                group.create_task(decent(number))
        await pool.idle()
        assert survivors() == []
        assert set(endings) <= {"result", "crash", "protocol", "output", "memory", "timeout", "cpu"}
    finally:
        await pool.close()
    assert _groups() == before


async def test_links_in_a_package_lead_nowhere(pool, tmp_path):
    """Success: a file of the host, or of the sandbox, through a package's symbolic link."""
    package = Path(
        write_package(
            tmp_path / "package",
            "import os\n"
            "def handle(input, ctx):\n"
            "    def there(name):\n"
            "        try: return bool(open(os.path.dirname(__file__) + name, 'rb').read(1))\n"
            "        except OSError: return False\n"
            "    return [there('/handler.py')] + [there(f'/link{n}') for n in range(4)]\n",
        )
    )
    targets = ("/etc/passwd", "../../../../../etc/passwd", "/proc/self/exe", "handler.py")
    for number, target in enumerate(targets):
        (package / f"link{number}").symlink_to(target)
    reply = await pool.run(Call(str(package)))
    assert reply.result is not None
    assert reply.result["output"] == [True, False, False, False, False]


async def test_entry_that_is_a_link_is_not_run(pool, tmp_path):
    """Success: code from outside of the package, chosen by a link in it."""
    package = Path(write_package(tmp_path / "package", ""))
    (package / "handler.py").unlink()
    (package / "handler.py").symlink_to(os.__file__)
    reply = await pool.run(Call(str(package), entrypoint="handler.py:getcwd"))
    assert reply.result is not None
    assert "Too many levels of symbolic links" in reply.result["error"]["message"]
