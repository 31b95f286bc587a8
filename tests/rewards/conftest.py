"""Parts of the tests that attack the verifier."""

from __future__ import annotations

import sys
from pathlib import Path

# Modules that several test modules here share lie beside them.
sys.path.insert(0, str(Path(__file__).parent))
