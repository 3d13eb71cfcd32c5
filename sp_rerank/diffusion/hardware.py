"""What devices and precisions are called: a wrong name is refused without torch. Knows nothing of this machine."""

from __future__ import annotations

from sp_rerank.errors import UsageError

DTYPES = ("float32", "float16", "bfloat16")
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "privateuseone")
"""Kinds that torch or a package beside it computes on."""


def check_device(device: str) -> None:
    """Refuse what is no device on any machine, without torch.

    Raises:
        UsageError: Naming it.
    """
    if device != "auto" and device.split(":")[0] not in DEVICES:
        raise UsageError(f"no device {device!r}; expected auto, {', '.join(DEVICES)}, such as cuda:0")


def check_dtype(dtype: str) -> None:
    """Refuse what is no precision, without torch.

    Raises:
        UsageError: Naming it.
    """
    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"no precision {dtype!r}; expected auto, {', '.join(DTYPES)}")
