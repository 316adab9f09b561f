"""infu_jax: InfiniteYou (arXiv 2503.16418) in JAX and Flax, for TPUs first."""

__version__ = "0.1.0"
