"""Errors that are about what the user gave, not about the program. Scripts print them as one line."""


class InputError(ValueError):
    """A file, setting or picture is not what it should be: what was found, what was expected, what to do."""
