"""What can go wrong, and what to do about it.

Every message says what is wrong, with the value, and what to do next. Ordinary states (too few
examples, an empty day) are values, not errors.
"""


class ReactuneError(Exception):
    """Anything reactune refuses to do; the command line prints it as one line."""


class ConfigError(ReactuneError):
    """A setting is missing, unknown or out of range."""


class DataError(ReactuneError):
    """Rows, files or the database do not hold what they must."""


class AwayError(DataError):
    """The database does not answer, is full or stays locked; what was to be written was not."""


class PrivacyError(ReactuneError):
    """Going on would expose a person or break what they were promised."""


class TrainingError(ReactuneError):
    """The trainer could not start, or ended without an adapter."""


class ReleaseError(ReactuneError):
    """A model cannot be exported, proven, registered or served."""


class CanaryError(ReactuneError):
    """A rollout cannot be opened, compared or decided."""
