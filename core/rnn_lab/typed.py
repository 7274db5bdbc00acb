"""Text that numbers may be read out of; apart from strict.py, which takes pydantic's time to import."""


class Typed(str):
    """Text of a command line or of an alias, where a number has no other form; in a file it would stand in quotes."""

    __slots__ = ()
