"""The one error that conversion raises for bad input."""

from infu_jax.errors import InputError


class ConversionError(InputError):
    """A checkpoint is not what it should be. The message says what was found, what was expected and what to do."""
