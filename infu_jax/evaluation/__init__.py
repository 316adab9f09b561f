"""How good is a model: the paper's protocol as a command, `python -m infu_jax.evaluation` (see docs/evaluation.md).

identities -> pairs -> making (pictures) -> measuring (models look at them) -> scores, statistics (NumPy) -> report.
"""
