"""A pool of its own for one call of `clients/handler.py`, as the user that started it.

`python call_once.py PACKAGE URL PORT` prints as JSON what `get_with_urllib` answered, or, if the
gateway cannot be had, why.
"""

import asyncio
import json
import sys

from sandbox import Call, Egress, Policy, Pool, PoolSettings


async def main(package, url, port):
    pool = Pool(PoolSettings(slots=1, spares=0, node="", ports=(80, 443, int(port))))
    await pool.start()
    try:
        for layer in pool.layers():
            if layer.name == "network" and not layer.available:
                return {"no_network": layer.detail}
        policy = Policy(network=Egress(private=("127.0.0.0/8",)))
        call = Call(package, "handler.py:get_with_urllib", input={"url": url}, policy=policy)
        reply = await pool.run(call)
        return reply.result or {"ending": reply.ending, "message": reply.message}
    finally:
        await pool.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
