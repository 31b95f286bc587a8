"""The verifier's own Python, in our own namespaces on the host's root file system."""

from __future__ import annotations

import pytest
import rooms
from own_python_cases import *  # noqa: F403 (the cases of every provider)

pytestmark = [pytest.mark.namespaces, pytest.mark.asyncio(loop_scope="module")]
room = rooms.local_room
