"""Errors that a person reads: one line each, with the mend; the command line turns them into exit statuses."""


class UserError(ValueError):
    """What the user gave cannot be used.  One line: the file or field, what is wrong, the mend.  Exit status 2."""


class CheckFailed(RuntimeError):
    """A check that the user asked for did not pass.  Exit status 1."""
