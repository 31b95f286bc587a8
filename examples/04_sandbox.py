"""A sandbox by itself: run commands, freeze the file system, and give it to children.

python examples/04_sandbox.py
"""

import asyncio

from ramify.compose import sandbox_provider
from ramify.contracts.frozen import Freezable
from ramify.contracts.sandbox import SandboxSpec as Spec


async def main() -> None:
    provider = sandbox_provider("local")
    spec = Spec(host_root=True)
    try:
        parent = await provider.create(spec)
        await parent.exec("mkdir /data && echo parent > /data/note")
        assert isinstance(parent, Freezable)
        image = await parent.freeze()
        await parent.teardown()

        children = [await provider.create(spec, image) for _ in range(3)]
        for number, child in enumerate(children):
            await child.exec(f"echo child {number} >> /data/note")
        for child in children:
            print((await child.exec("cat /data/note")).stdout.decode().split("\n"))
            await child.teardown()
        await provider.discard(image)
    finally:
        await provider.aclose()


if __name__ == "__main__":
    asyncio.run(main())
