"""Where the parts of a survey lie in its file."""

from dataclasses import dataclass

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class SurveyKeys:
    """Keys of the data sets, by default those of the common survey layout.

    ``error`` and ``wavelength`` may be ``auto`` (the default key where the file has it) or ``none``. A label lies under
    ``labels/NAME``, a data set in a group or a field of one compound data set.
    """

    flux: str = "dataset/arrays/flux/value"
    error: str = "dataset/arrays/error/value"
    wavelength: str = "spectrumdataset/wave"
    labels: str = "dataset/params"
