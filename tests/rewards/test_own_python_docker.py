"""The verifier's own Python, in Docker containers."""

from __future__ import annotations

import pytest
import rooms
from own_python_cases import *  # noqa: F403 (the cases of every provider)

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]
room = rooms.docker_room
