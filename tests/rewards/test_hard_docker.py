"""Tests run by our own runner, in Docker containers."""

from __future__ import annotations

import pytest
import rooms
from hard_cases import *  # noqa: F403 (the cases of every provider)

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]
room = rooms.docker_room
