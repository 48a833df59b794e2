"""The one exception for input that a user can mend."""


class UserError(Exception):
    """Bad input: one clear line that names the key or file and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """
