"""The engine by itself: a pool of resources, and a bounded stream over endless inputs.

python examples/06_engine.py
"""

import asyncio
from contextlib import aclosing
from itertools import count

import ramify


class ScratchFactory:
    """Makes what the pool holds; here a list stands for something expensive."""

    async def create(self) -> list[int]:
        await asyncio.sleep(0.01)
        return []

    async def destroy(self, resource: list[int]) -> None:
        print(f"one resource served {len(resource)} items")


async def main() -> None:
    async with ramify.ResourcePool(ScratchFactory(), max_size=2) as pool:

        async def square(number: int) -> int:
            async with pool.acquire() as scratch:
                await asyncio.sleep(0.001)
                scratch.append(number)
                return number * number

        taken: list[int] = []
        async with ramify.Executor(square, concurrency=8) as engine:
            async with aclosing(engine.generate(count())) as results:
                async for result in results:
                    taken.append(result)
                    if len(taken) == 50:
                        break
        print(f"{len(taken)} results taken from an endless stream, the last is {taken[-1]}")


if __name__ == "__main__":
    asyncio.run(main())
