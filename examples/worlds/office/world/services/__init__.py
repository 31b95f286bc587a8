"""Mail, calendar, files and chat of a small company, each over its own database."""

PORTS = {"mail": 8101, "calendar": 8102, "files": 8103, "chat": 8104}
"""Where each service listens, on loopback."""
