"""Embedded data: the tiny stack with the programs that made it, and sample faces."""

from pathlib import Path

ASSETS = Path(__file__).parent
