"""The exceptions that edgetok raises on purpose.

    EdgetokError
    ├── UserError            the caller can fix it; the command line prints one line and exits 2
    │   ├── CheckpointError  a Hugging Face folder is missing something, damaged or hostile
    │   ├── UnsupportedError the model needs arithmetic that edgetok does not have
    │   │   └── UnknownFamilyError no file in models/ describes the model's family
    │   ├── ArtefactError    an edgetok folder is damaged, foreign or does not match its spec
    │   ├── TemplateError    a chat template is invalid, unsafe or took too long
    │   ├── SessionError     a saved conversation is damaged or belongs to another model
    │   ├── ContextError     more tokens than the context holds
    │   ├── OptionError      an option's value is out of range
    │   ├── GrammarError     a schema or grammar is invalid, unsupported, too complex, or failed
    │   ├── BusyError        the engine has as many answers to write as it takes
    │   └── MissingExtraError a feature needs an optional dependency
    ├── OutputError          the disk is full, the folder is locked, a file cannot be written
    └── ShapeError           a launcher was called with arrays of the wrong shape or dtype (our bug)

A message gives what was found, what was expected and the remedy, with file and field.
"""

import errno

# Why the system does not let a file be written: more space or another folder helps.
NOT_WRITTEN = frozenset(
    getattr(errno, name, 0)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EFBIG")
)


class EdgetokError(Exception):
    """Base of every error that edgetok raises on purpose."""


class UserError(EdgetokError):
    """An error that the caller can fix."""


class CheckpointError(UserError):
    """A Hugging Face model folder is missing something, damaged or hostile."""


class UnsupportedError(UserError):
    """The model needs arithmetic that edgetok does not have."""


class UnknownFamilyError(UnsupportedError):
    """No file in models/ describes the model's family; a generic exporter may still know it."""


class ArtefactError(UserError):
    """An edgetok folder is damaged, foreign or does not match its spec."""


class TemplateError(UserError):
    """A chat template is invalid, unsafe or took too long."""


class SessionError(UserError):
    """A saved conversation is damaged or belongs to another model."""


class ContextError(UserError):
    """More tokens were given than the context holds."""


class OptionError(UserError):
    """An option's value is out of range."""


class GrammarError(UserError):
    """A schema or grammar is invalid, unsupported, too complex, or failed while an answer was held.

    Nothing unchecked follows: an answer whose grammar fails ends with this error.
    """


class BusyError(UserError):
    """The engine has as many answers to write as it takes; try again later."""


class MissingExtraError(UserError):
    """A feature needs an optional dependency that is not installed."""


class OutputError(EdgetokError):
    """A result could not be written: disk full, folder locked, no permission."""


class ShapeError(EdgetokError):
    """A kernel launcher was called with arrays of the wrong shape or dtype."""
