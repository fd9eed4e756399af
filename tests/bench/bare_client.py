"""The least that a client can do: `python bare_client.py URL COUNT` prints the seconds it took.

`websockets` as its documentation shows it, every frame received and none looked at.
"""

import asyncio
import sys
import time

from websockets.asyncio.client import connect


async def receive(url: str, count: int) -> float:
    """Receive so many frames; return the time from before connecting to the last one."""
    started = time.perf_counter()
    async with connect(url, compression=None, close_timeout=0.1) as connection:
        for _ in range(count):
            await connection.recv(decode=False)
        return time.perf_counter() - started


if __name__ == "__main__":
    print(asyncio.run(receive(sys.argv[1], int(sys.argv[2]))))
