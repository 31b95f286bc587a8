"""The built-in agent against a scripted endpoint: reads a file, quotes it, and is scored.

Put a real endpoint in its place with `model="openai/NAME"` and its `base_url`.

python examples/08_chat_agent.py [local|docker|bare]
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import ramify
from ramify.testing.openai_server import OpenAIServer
from ramify.testing.scripted_model import Seen, call

TASKS = Path(__file__).parent / "tasks"
COUNT = "awk '$(NF-1) >= 400 { n[$1]++ } END { for (ip in n) print n[ip], ip }' access.log"


def write_answer(seen: Seen):
    return call("write", path="top.txt", content=seen.answers[0])


SCRIPT = [
    call("bash", command=f"{COUNT} | LC_ALL=C sort -k1,1nr -k2,2 | head -n 5"),
    write_answer,
    "The five clients are in top.txt.",
]


async def main(sandbox: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with OpenAIServer(SCRIPT) as server:
            options = ramify.RunOptions(
                task_ids=("top-clients",),
                model="openai/scripted",
                base_url=server.base_url,
                model_options={"input_price": "0.15", "output_price": "0.60"},
                rollout=ramify.RolloutConfig(max_turns=10),
                out=Path(folder) / "job",
            )
            report = await ramify.run(TASKS, agent="chat", sandbox=sandbox, options=options)
        [result] = report.results
        used = result.usage
        print(f"{result.model}: reward {result.reward} after {used.calls} model calls")
        print(f"{used.input_tokens} tokens in, {used.output_tokens} out, ${used.cost_usd:.6f}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or ["local"]))
