"""Processes and calls as tests of pools watch them."""

import asyncio

import psutil


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # dead: for init to reap
    except psutil.NoSuchProcess:
        return False


async def all_gone(pids):
    """Waits for the kernel to finish what kill began; each pid is one that we saw as ours."""
    async with asyncio.timeout(5):
        while any(lives(pid) for pid in pids):  # noqa: ASYNC110  no event to await
            await asyncio.sleep(0.01)


async def started(group, pool, call):
    """A task that runs the call, once the handler has said something."""
    spoken = asyncio.Event()
    task = group.create_task(pool.run(call, lambda _line: spoken.set()))
    async with asyncio.timeout(10):
        await spoken.wait()
    return task
