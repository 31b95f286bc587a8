"""Mail, calendar, files and chat of a small company, each over its own database."""

import os

_FIRST = int(os.environ.get("OFFICE_PORT", "8101"))
PORTS = {name: _FIRST + n for n, name in enumerate(("mail", "calendar", "files", "chat"))}
"""Where each service listens, on loopback."""
