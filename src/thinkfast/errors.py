"""Errors a user can act on: each says what is wrong and what to do about it.

Why: the CLI prints these on stderr and exits with code 2; any other exception is a bug of ours and keeps its
traceback. A remedy is a required argument, so that no message ends at "invalid input".

    raise InputError("seconds is -1, a budget must be positive", remedy="pass --seconds 5")
"""

from __future__ import annotations


class ThinkfastError(Exception):
    """Base of all errors meant for users; `str()` gives the message, then the remedy on its own line."""

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}"

    def __reduce__(self) -> tuple[object, tuple[type[ThinkfastError], str, str]]:
        # Worker processes send errors through pickle, which cannot pass a keyword-only argument by itself.
        return _rebuild, (type(self), self.message, self.remedy)


def _rebuild(kind: type[ThinkfastError], message: str, remedy: str) -> ThinkfastError:
    return kind(message, remedy=remedy)


class InputError(ThinkfastError):
    """A value given by the user cannot be used."""


class ModelError(ThinkfastError):
    """Unknown model name, or a checkpoint that is missing, truncated or does not match its config."""


class ConfigError(ThinkfastError):
    """A recipe or an override has an unknown key, a wrong type or a value out of range."""


class ProblemError(ThinkfastError):
    """A problem set cannot be found or read, or a problem is empty or too long."""


class OutputError(ThinkfastError):
    """The output place is unwritable, holds something else, or is out of space."""


class GateError(ThinkfastError):
    """A distillation stage ended below its numeric gate."""


class ParityError(ThinkfastError):
    """Two forms that must agree (reference and fast path, ours and exported) do not."""


class CapacityError(ThinkfastError):
    """The work asked for does not fit in memory."""
