"""Embedded data: the tiny stack, the program that makes its tokenizers, and sample faces."""

from pathlib import Path

from infu_jax.config import SamplingConfig

ASSETS = Path(__file__).parent
TINY = ASSETS / "tiny"
TINY_SAMPLING = SamplingConfig(width=128, height=128, steps=20, t5_length=56)
"""Sizes for tiny stacks; those of examples/tiny_world are trained for them."""
TINY_TRUE_CFG = 2.0
"""How far they are led away from the empty prompt: small models follow their prompt better so. FLUX.1 learned that from its teacher and needs none."""
