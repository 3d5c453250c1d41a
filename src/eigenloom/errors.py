"""What a user can get wrong, as exceptions whose message is a sentence.

Every message says what was found, where, and how to repair it. Scripts print the message and exit with
status 1; anything that is not an ``EigenloomError`` is a defect of ours and keeps its traceback.
"""


class EigenloomError(Exception):
    """Base of everything a user can cause and repair."""


class ConfigError(EigenloomError, ValueError):
    """A parameter or a configuration value is out of range, unknown or contradicts another."""


class DataError(EigenloomError, ValueError):
    """Rows, labels or images cannot be used: NaN, too few, constant, out of range, unreadable."""


class StoreError(EigenloomError, OSError):
    """A file or directory is missing, damaged, foreign, of the wrong size, or cannot be written."""


class MismatchError(EigenloomError, ValueError):
    """Two artifacts do not belong together: another recording, layer, standardization or basis."""


class Interrupted(EigenloomError):  # noqa: N818 (an event, not an error)
    """A SIGTERM arrived; the unfinished work was saved and the same command resumes it."""
