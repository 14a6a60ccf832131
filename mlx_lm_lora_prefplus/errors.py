"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Something the user gave cannot work.

    The message is complete without a traceback: what was given, what is allowed, what to do. The command
    line prints it and exits with code 1; callers from Python catch it as the `ValueError` it is.
    """
