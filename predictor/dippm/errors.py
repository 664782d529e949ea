"""What can go wrong, as the user sees it.

Every error is one sentence that names the file or field and the way out. The command line prints it on
stderr and exits with 2; the operator writes it as a condition and an Event, with `reason` as its reason.

    DippmError
    ├── ArtifactError               the model file cannot be had or is not what was asked for
    │   ├── ArtifactUnreachable     the URI or path does not answer
    │   ├── DigestMismatch          the content is not the one whose digest was given
    │   └── ArtifactTooLarge        more bytes than the limit allows
    ├── ModelFormatError            the file is no model, is truncated, or is a kind of file that is refused
    │   └── UnsafeModel             loading it would run code (a pickle, a `.pt2` with an evil expression)
    ├── UnsupportedOperator         an operator that the frontends do not know; its name is in the sentence
    ├── InputShapeError             batch, shape or dtype missing, or not the model's
    ├── ParseLimitExceeded          the parsing child was stopped by one of its limits (which one is said)
    ├── UnknownDevice               no such device in the catalogue
    ├── UnknownProfile              no such MIG profile on that device
    └── ManifestError               an InferenceJob manifest that cannot be read or breaks a rule
"""

from __future__ import annotations


class DippmError(Exception):
    """Base of all errors whose text is meant for the user.

    `reason` is the CamelCase word used as the reason of a Kubernetes condition and Event.
    """

    reason = "Failed"


class ArtifactError(DippmError):
    """The model file cannot be had, or is not what was asked for."""

    reason = "ArtifactFailed"


class ArtifactUnreachable(ArtifactError):
    """The URI or path does not answer."""

    reason = "ArtifactUnreachable"


class DigestMismatch(ArtifactError):
    """The content's digest is not the one that was asked for."""

    reason = "DigestMismatch"


class ArtifactTooLarge(ArtifactError):
    """The artifact has more bytes than the limit allows."""

    reason = "ArtifactTooLarge"


class ModelFormatError(DippmError):
    """The file is no model, is truncated, or is of a kind that is not read."""

    reason = "ModelUnreadable"


class UnsafeModel(ModelFormatError):
    """Loading the file would run code that it carries; it was not loaded."""

    reason = "UnsafeModel"


class UnsupportedOperator(DippmError):
    """The model has an operator that the frontends do not know."""

    reason = "UnsupportedOperator"


class InputShapeError(DippmError):
    """Batch, shape or dtype of an input is missing or does not suit the model."""

    reason = "InputShapeInvalid"


class ParseLimitExceeded(DippmError):
    """The parsing child process ran into one of its limits, or crashed."""

    reason = "ParseLimitExceeded"


class UnknownDevice(DippmError):
    """The device is not in the catalogue."""

    reason = "UnknownDevice"


class UnknownProfile(DippmError):
    """The device has no such MIG profile."""

    reason = "UnknownProfile"


class ManifestError(DippmError):
    """A manifest cannot be read or breaks a rule of the InferenceJob."""

    reason = "ManifestInvalid"
