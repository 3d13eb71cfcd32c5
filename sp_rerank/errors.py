"""What can go wrong in a way that the person can mend, and the exit code of each.

SpRerankError            1   a bug, if it is raised itself
├── UsageError           2   wrong arguments or configuration
│   ├── OptionError      2   one option, by its Python name; each layer shows it in its own spelling
│   └── UnwatchableError 2   a pipeline cannot be looked into, or its batch not cut, on its way
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


class UnwatchableError(UsageError):
    """A pipeline or its scheduler cannot be looked into on its way, or its batch cannot be cut there."""


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


# Of CUDA, ROCm, XPU and Apple's MPS; of cuBLAS, cuDNN and their like; of PyTorch's CPU allocator on Linux and Windows.
_MEMORY = (
    "out of memory",
    "outofmemory",
    "out_of_device_memory",
    "out_of_host_memory",
    "not enough memory",
    "cannot allocate memory",
    "can't allocate memory",
    "_alloc_failed",
    "invalid buffer size",
    "bad_alloc",
    "errormemoryallocation",
)
_LOST = (
    "cuda error",
    "hip error",
    "xpu error",
    "device-side assert",
    "mps backend",
    "_execution_failed",
    "_internal_error",
    "unspecified launch failure",
    "device_lost",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device or of the machine does not suffice, in any back end's words."""
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and _says(error, _MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether an error says that an accelerator failed, so that the process cannot go on with it."""
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and _says(error, _LOST)


def _says(error: BaseException, marks: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(mark in text for mark in marks)


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()[:300]
