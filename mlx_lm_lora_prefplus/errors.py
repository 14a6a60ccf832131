"""The exception whose message is meant for the user."""


class UserError(ValueError):
    """An input of the user is invalid.

    The message is complete without a traceback: what was given, what is allowed, what to do. The command line prints it
    and exits with code 1. Python callers can catch it as a `ValueError`.
    """
