"""Embedded data: the tiny stack, sample faces, and the programs that made them."""
