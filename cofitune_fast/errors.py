"""Exception for all errors that a user can put right."""


class CofituneError(ValueError):
    """Error that a user can put right, in one sentence: what is wrong, where, and what to do about it.

    The command line prints the sentence without a traceback and exits with status 2.
    """
