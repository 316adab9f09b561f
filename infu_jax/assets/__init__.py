"""Embedded data: the tiny stack, sample faces, and the programs that made them."""

from pathlib import Path

ASSETS = Path(__file__).parent
