"""Ramify: stateful environments into scored, training-ready trajectory trees.

The names below are the public face. They are loaded when first used, so that importing the
package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ramify.apps.pipeline.records import PipelineSpec as PipelineSpec
    from ramify.apps.pipeline.records import StepSpec as StepSpec
    from ramify.apps.pipeline.reward import PipelineReward as PipelineReward
    from ramify.apps.pipeline.verifier import PipelineVerifier as PipelineVerifier
    from ramify.contracts.agent import Agent as Agent
    from ramify.contracts.agent import AgentCapabilities as AgentCapabilities
    from ramify.contracts.agent import Session as Session
    from ramify.contracts.agent import StopReason as StopReason
    from ramify.contracts.config import RolloutConfig as RolloutConfig
    from ramify.contracts.context import Context as Context
    from ramify.contracts.environment import Environment as Environment
    from ramify.contracts.environment import Revertible as Revertible
    from ramify.contracts.errors import RamifyError as RamifyError
    from ramify.contracts.errors import UsageError as UsageError
    from ramify.contracts.errors import VerificationRejected as VerificationRejected
    from ramify.contracts.messages import Message as Message
    from ramify.contracts.model import Completion as Completion
    from ramify.contracts.model import Model as Model
    from ramify.contracts.result import RolloutResult as RolloutResult
    from ramify.contracts.reward import Reward as Reward
    from ramify.contracts.reward import RewardEvent as RewardEvent
    from ramify.contracts.reward import Verifier as Verifier
    from ramify.contracts.reward import VerifyResult as VerifyResult
    from ramify.contracts.sandbox import Sandbox as Sandbox
    from ramify.contracts.sandbox import SandboxProvider as SandboxProvider
    from ramify.contracts.sandbox import SandboxSpec as SandboxSpec
    from ramify.contracts.state import State as State
    from ramify.contracts.task import Task as Task
    from ramify.contracts.task import Taskset as Taskset
    from ramify.contracts.tree import Outcome as Outcome
    from ramify.contracts.tree import Step as Step
    from ramify.engine.executor import Executor as Executor
    from ramify.engine.pool import ResourcePool as ResourcePool
    from ramify.engine.summary import JobSummary as JobSummary
    from ramify.envs.check import check_tasks as check_tasks
    from ramify.envs.live import LiveRollout as LiveRollout
    from ramify.envs.live import open_rollout as open_rollout
    from ramify.envs.options import RunOptions as RunOptions
    from ramify.envs.rescore import score_records as score_records
    from ramify.envs.run import JobReport as JobReport
    from ramify.envs.run import run as run
    from ramify.envs.run import stream as stream
    from ramify.envs.score import score_job as score_job
    from ramify.kernel.trajectory import Trajectory as Trajectory
    from ramify.kernel.tree import Tree as Tree
    from ramify.planes.reward.groups import RubricGroup as RubricGroup
    from ramify.planes.reward.judge import Asking as Asking
    from ramify.planes.reward.judge import Judge as Judge
    from ramify.planes.reward.judge_cache import FileVerdicts as FileVerdicts
    from ramify.planes.reward.judge_cache import MemoryVerdicts as MemoryVerdicts
    from ramify.planes.reward.judge_calibration import LabelledExample as LabelledExample
    from ramify.planes.reward.judge_calibration import calibrate as calibrate
    from ramify.planes.reward.judge_panel import JudgePanel as JudgePanel
    from ramify.planes.reward.judge_reward import JudgeReward as JudgeReward
    from ramify.planes.reward.judge_scale import Criterion as Criterion
    from ramify.planes.reward.judge_scale import Scale as Scale
    from ramify.planes.reward.judge_verdict import Verdict as Verdict
    from ramify.planes.reward.math import MathReward as MathReward
    from ramify.planes.reward.parsers.base import Parser as Parser
    from ramify.planes.reward.parsers.boxed import extract_boxed_answer as extract_boxed_answer
    from ramify.planes.reward.parsers.json import JSONParser as JSONParser
    from ramify.planes.reward.parsers.think import MaybeThinkParser as MaybeThinkParser
    from ramify.planes.reward.parsers.think import ThinkParser as ThinkParser
    from ramify.planes.reward.parsers.xml import XMLParser as XMLParser
    from ramify.planes.reward.rubric import Rubric as Rubric
    from ramify.planes.reward.spaces.actions import ActionPattern as ActionPattern
    from ramify.planes.reward.spaces.actions import AskedWhenDue as AskedWhenDue
    from ramify.planes.reward.spaces.actions import RightActions as RightActions
    from ramify.planes.reward.spaces.disagreement import Suspicion as Suspicion
    from ramify.planes.reward.spaces.disagreement import disagreement as disagreement
    from ramify.planes.reward.spaces.hacks import HackPatterns as HackPatterns
    from ramify.planes.reward.spaces.hacks import NoHacks as NoHacks
    from ramify.planes.reward.spaces.memory import MemoryExpectation as MemoryExpectation
    from ramify.planes.reward.spaces.memory import MemoryUpdated as MemoryUpdated
    from ramify.planes.reward.spaces.offered import OfferedTools as OfferedTools
    from ramify.planes.reward.spaces.reasoning import SoundReasoning as SoundReasoning
    from ramify.planes.reward.spaces.reasoning import reasoning_judge as reasoning_judge
    from ramify.planes.reward.spaces.walking import ProcessReward as ProcessReward
    from ramify.tasks.dataset import from_dataset as from_dataset
    from ramify.tasks.dataset import to_dataset as to_dataset
    from ramify.tasks.registry import HarborTaskset as HarborTaskset
    from ramify.tasks.taskset import MemoryTaskset as MemoryTaskset
    from ramify.tasks.taskset import load_taskset as load_taskset

_MODULES = {
    "apps.pipeline.records": ("PipelineSpec", "StepSpec"),
    "apps.pipeline.reward": ("PipelineReward",),
    "apps.pipeline.verifier": ("PipelineVerifier",),
    "contracts.agent": ("Agent", "AgentCapabilities", "Session", "StopReason"),
    "contracts.config": ("RolloutConfig",),
    "contracts.context": ("Context",),
    "contracts.environment": ("Environment", "Revertible"),
    "contracts.errors": ("RamifyError", "UsageError", "VerificationRejected"),
    "contracts.messages": ("Message",),
    "contracts.model": ("Completion", "Model"),
    "contracts.result": ("RolloutResult",),
    "contracts.reward": ("Reward", "RewardEvent", "Verifier", "VerifyResult"),
    "contracts.sandbox": ("Sandbox", "SandboxProvider", "SandboxSpec"),
    "contracts.state": ("State",),
    "contracts.task": ("Task", "Taskset"),
    "contracts.tree": ("Outcome", "Step"),
    "engine.executor": ("Executor",),
    "engine.pool": ("ResourcePool",),
    "engine.summary": ("JobSummary",),
    "envs.check": ("check_tasks",),
    "envs.live": ("LiveRollout", "open_rollout"),
    "envs.options": ("RunOptions",),
    "envs.rescore": ("score_records",),
    "envs.run": ("JobReport", "run", "stream"),
    "envs.score": ("score_job",),
    "kernel.trajectory": ("Trajectory",),
    "kernel.tree": ("Tree",),
    "planes.reward.groups": ("RubricGroup",),
    "planes.reward.judge": ("Asking", "Judge"),
    "planes.reward.judge_cache": ("FileVerdicts", "MemoryVerdicts"),
    "planes.reward.judge_calibration": ("LabelledExample", "calibrate"),
    "planes.reward.judge_panel": ("JudgePanel",),
    "planes.reward.judge_reward": ("JudgeReward",),
    "planes.reward.judge_scale": ("Criterion", "Scale"),
    "planes.reward.judge_verdict": ("Verdict",),
    "planes.reward.math": ("MathReward",),
    "planes.reward.parsers.base": ("Parser",),
    "planes.reward.parsers.boxed": ("extract_boxed_answer",),
    "planes.reward.parsers.json": ("JSONParser",),
    "planes.reward.parsers.think": ("MaybeThinkParser", "ThinkParser"),
    "planes.reward.parsers.xml": ("XMLParser",),
    "planes.reward.rubric": ("Rubric",),
    "planes.reward.spaces.actions": ("ActionPattern", "AskedWhenDue", "RightActions"),
    "planes.reward.spaces.disagreement": ("Suspicion", "disagreement"),
    "planes.reward.spaces.hacks": ("HackPatterns", "NoHacks"),
    "planes.reward.spaces.memory": ("MemoryExpectation", "MemoryUpdated"),
    "planes.reward.spaces.offered": ("OfferedTools",),
    "planes.reward.spaces.reasoning": ("SoundReasoning", "reasoning_judge"),
    "planes.reward.spaces.walking": ("ProcessReward",),
    "tasks.dataset": ("from_dataset", "to_dataset"),
    "tasks.registry": ("HarborTaskset",),
    "tasks.taskset": ("MemoryTaskset", "load_taskset"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll] (made from the table above)


def __getattr__(name: str) -> Any:
    if (module := _HOME.get(name)) is None:
        raise AttributeError(f"module 'ramify' has no attribute {name!r}")
    return getattr(import_module(f"ramify.{module}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
