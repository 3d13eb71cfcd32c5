"""What can go wrong in a way that the person can mend, and the exit code of each.

SpRerankError            1   a bug, if it is raised itself
├── UsageError           2   wrong arguments or configuration
│   └── OptionError      2   one option, by its Python name; each layer shows it in its own spelling
├── FolderBusyError      3   another process writes to the run folder
├── NothingUsableError   4   no image could be used
├── HubUnavailableError  69  a model is neither here nor within reach
├── StorageError         74  the disk is full, a folder cannot be written, a file is damaged
│   └── UnreadableImageError  74  an image file is damaged, too large or of no format that is read
└── TryAgainError        75  cut short; the same command with --resume goes on

Ctrl-C exits with 130. A message says what was expected, what came, and what to do, in one line.
"""


class SpRerankError(Exception):
    """The root: catching it catches everything that this library raises on purpose."""

    exit_code = 1


class UsageError(SpRerankError, ValueError):
    """An argument or a configuration is not usable."""

    exit_code = 2


class OptionError(UsageError):
    """One option has a value that is not usable.

    Args:
        name: The option's Python name, such as "guidance_scale".
        value: What came.
        expected: What was expected, in words that fit every layer: no command line flags.
    """

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(name, value, expected)
        self.name, self.value, self.expected = name, value, expected

    def __str__(self) -> str:
        return self.spelled(self.name)

    def spelled(self, name: str) -> str:
        """The message with the option's name as another layer spells it, such as "--guidance-scale"."""
        value = repr(self.value) if isinstance(self.value, str) else str(self.value)
        return f"{name} is {value}; expected {self.expected}"


class FolderBusyError(SpRerankError):
    """Another process holds the lock of the run folder."""

    exit_code = 3


class NothingUsableError(SpRerankError):
    """Every image was flagged, not finite or unreadable, or too many were."""

    exit_code = 4


class HubUnavailableError(SpRerankError):
    """A model is not on this machine and the hub cannot be reached."""

    exit_code = 69


class StorageError(SpRerankError, OSError):
    """The disk is full, a folder cannot be written, or a file is damaged."""

    exit_code = 74


class UnreadableImageError(StorageError):
    """An image file is damaged, too large or of no format that is read; among many it is skipped and counted."""


class TryAgainError(SpRerankError):
    """The run was cut short by the machine; --resume goes on where it stopped."""

    exit_code = 75
