"""Embedded data: the tiny stack, the program that makes its tokenizers, and sample faces."""

from pathlib import Path

ASSETS = Path(__file__).parent
