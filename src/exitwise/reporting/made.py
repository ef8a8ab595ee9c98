"""Where and when a report is made."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from exitwise.runs.records.environment import environment


def machine() -> dict[str, Any]:
    """Return versions and machine, as an environment record has them."""
    return {key: value for key, value in environment([]).items() if key not in ("command", "exitwise")}


def now() -> str:
    """Return the time, in UTC, as text."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
