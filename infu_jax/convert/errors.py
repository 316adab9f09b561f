"""The one error that conversion raises for bad input."""

from infu_jax.errors import InputError


class ConversionError(InputError):
    """A checkpoint is not what it should be. The message says what was found, what was expected and what to do."""


def shown(name: str) -> str:
    """A name out of a file as a piece of one line, whatever it is: half characters cannot be printed, and a terminal would obey others."""
    return name if name.isprintable() and len(name) <= 120 else ascii(name)[:120]
