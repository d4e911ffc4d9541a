"""Errors whose message is meant for the person at the keyboard, and the wish to stop."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend: one sentence that names the file, key or shape, what was
    expected and what to do. The command line prints it without a traceback and exits with 2."""


class Stopped(BaseException):
    """SIGTERM: whoever hears it writes what it can. Not an ``Exception``, so nobody takes it for
    a failure."""
