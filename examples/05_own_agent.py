"""Bring your own agent: two small classes that honour the contract.

python examples/05_own_agent.py [local|docker|bare]
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import ramify
from ramify.contracts.agent import AskUserHandler

TASKS = Path(__file__).parent / "tasks"


class Looker:
    """An agent that looks around and gives up."""

    name = "looker"

    def capabilities(self) -> ramify.AgentCapabilities:
        return ramify.AgentCapabilities(multi_prompt=True)

    async def connect(
        self, sandbox: ramify.Sandbox, ctx: ramify.Context, role: str = "agent"
    ) -> "Look":
        return Look(sandbox, ctx)


class Look:
    def __init__(self, sandbox: ramify.Sandbox, ctx: ramify.Context) -> None:
        self.sandbox, self.ctx = sandbox, ctx
        self.steps: list[ramify.Step] = []

    async def prompt(self, text: str) -> ramify.StopReason:
        listing = (await self.sandbox.exec("ls", cwd=self.ctx.workdir)).stdout.decode()
        messages = (ramify.Message("assistant", f"I see: {listing.split()}. I give up."),)
        self.steps.append(ramify.Step(messages, action="ls"))
        await self.ctx.recorder.step(self.steps[-1])
        return ramify.StopReason.END_TURN

    async def cancel(self) -> None: ...

    def on_ask_user(self, handler: AskUserHandler) -> None: ...

    async def aclose(self) -> None: ...


async def main(sandbox: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = ramify.RunOptions(limit=2, out=Path(folder) / "job")
        report = await ramify.run(TASKS, agent=Looker(), sandbox=sandbox, options=options)
        print(f"{report.summary.counted} scored, mean reward {report.summary.mean}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or ["local"]))
