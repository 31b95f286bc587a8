"""The built-in agent: one loop of a policy and its tools, over the Model contract."""

from __future__ import annotations

from ramify.contracts.agent import AgentCapabilities, Checkpointable
from ramify.contracts.config import SkillMode
from ramify.contracts.context import Context
from ramify.contracts.errors import UnsupportedError, UsageError
from ramify.contracts.messages import Message
from ramify.contracts.sandbox import Sandbox
from ramify.planes.agent.chat_kit import Settings, open_kit
from ramify.planes.agent.chat_loop import Loop, Progress, policy_of
from ramify.planes.agent.conversation import Conversation
from ramify.planes.agent.session import Transcript, TurnSession
from ramify.planes.agent.skills import find_skills, skills_text

_SYSTEM = """\
You work in a Linux sandbox and solve the task that the user gives you by calling tools. Nobody \
answers questions while you work: decide yourself, look before you change things, and check your \
result. The work directory is {workdir}. When the task is done, answer without a tool call; that \
ends your turn."""


class ChatAgent:
    """Lets a model work with tools: bash, read, write and edit in the sandbox.

    The tools of a task's MCP servers join them as `server__tool`. With the skill mode
    `with-skill`, the skills of the task are named in the system message; the model reads what it
    needs of them.

    Args:
        system: the system message; `{workdir}` in it stands for the work directory. Empty: none,
            but for the skills.
        bash_timeout_sec: time of a command that asks for none.
        output_limit: characters of a tool's answer; beyond that its middle is left out.
        max_bad_turns: after so many turns in a row without a valid tool call or an answer the
            agent has failed.
        mcp_timeout_sec: time of one call of an MCP server's tool.
        mcp_start_sec: how long an MCP server may take until it answers for the first time.

    Raises:
        UsageError: a number that is too small.
    """

    name = "chat"

    def __init__(
        self,
        system: str = _SYSTEM,
        bash_timeout_sec: float = 120.0,
        output_limit: int = 16_000,
        max_bad_turns: int = 8,
        mcp_timeout_sec: float = 120.0,
        mcp_start_sec: float = 60.0,
    ) -> None:
        if not (bash_timeout_sec > 0 and output_limit >= 100 and max_bad_turns >= 1):
            raise UsageError(
                "chat needs bash_timeout_sec above 0, output_limit of 100 or more, max_bad_turns "
                "of 1 or more"
            )
        if not (mcp_timeout_sec > 0 and mcp_start_sec > 0):
            raise UsageError("chat needs mcp_timeout_sec and mcp_start_sec above 0")
        self._system, self._max_bad_turns = system, max_bad_turns
        self._settings = Settings(bash_timeout_sec, output_limit, mcp_timeout_sec, mcp_start_sec)

    def capabilities(self) -> AgentCapabilities:
        """It needs a model, and goes on with the conversation at a further prompt."""
        return AgentCapabilities(needs_model=True, multi_prompt=True, mcp=True, skills=True)

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Checkpointable:
        """Open a session, with connections to the task's MCP servers.

        Raises UsageError when the run has no model, UnsupportedError for the skill mode
        `self-gen`, EnvironmentFailed when an MCP server does not answer.
        """
        model = policy_of(ctx)
        if ctx.config.skill_mode is SkillMode.SELF_GEN:
            raise UnsupportedError(
                "the chat agent writes no skills of its own (skill mode self-gen); use no-skill "
                "or with-skill"
            )
        texts = [self._system.replace("{workdir}", ctx.workdir)]
        texts.append(skills_text(await find_skills(sandbox, ctx)))
        system = "\n\n".join(filter(None, texts))
        kit = await open_kit(sandbox, ctx, self._settings)
        specs = [tool.spec for tool in kit.tools.values()]
        opening = [Message("system", system)] if system else []
        transcript = Transcript(ctx, role)
        at = Progress(Conversation(opening, specs))
        return TurnSession(Loop(ctx, model, kit, transcript, self._max_bad_turns, at), transcript)
