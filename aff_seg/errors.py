"""The error shown to a user as one sentence."""


class UserError(ValueError):
    """Bad input, told in one sentence that names it and says what to do.

    The command line programs print it without a traceback and exit with status 1.
    """
