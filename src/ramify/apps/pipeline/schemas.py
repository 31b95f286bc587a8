"""JSON Schemas of what a pipeline is declared by and what a run of one answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ramify.apps.pipeline.config import agent_schema
from ramify.apps.pipeline.records import Response


def schemas() -> Mapping[str, dict[str, Any]]:
    """Name → schema: `agent` (of agent.yaml), `response` (of `ramify verify --json`)."""
    response = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Response of ramify verify",
        **msgspec.json.schema(Response),
    }
    return {"agent": agent_schema(), "response": response}


def schema_text(name: str) -> str:
    """A schema as it is printed and kept. Raises: KeyError (no such schema)."""
    return msgspec.json.format(msgspec.json.encode(schemas()[name]), indent=2).decode()
