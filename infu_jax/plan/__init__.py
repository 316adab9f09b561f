"""What a training step or a picture takes of a machine that need not be there. The command: `python -m infu_jax.plan --help`."""
