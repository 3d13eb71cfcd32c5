"""How well a run uses its device: the denoiser's share of the time and of the matmul peak, and how long a device waits.

The denoiser and the decoder are watched from outside: on an accelerator by events on its stream, so that nothing waits
for it; on a CPU by the CPU time of the process, for other programs run too. Knows torch modules; knows nothing of
searches or scorers.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CPU_SIDE, ACCELERATOR_SIDE = 1024, 8192  # of the square matrices whose product is the peak
TRIES = 5


class Watch:
    """Watches a pipeline of diffusers from its making until `shares` is asked for.

    Args:
        pipe: With a `unet` or a `transformer`; its networks are called as before.
    """

    def __init__(self, pipe: Any) -> None:
        self._device: torch.device = pipe.device
        self._dtype: torch.dtype = pipe.dtype
        self._calls = _Calls(getattr(pipe, "unet", None) or pipe.transformer, "forward", self._device)
        self._decodes = _Calls(pipe.vae, "decode", self._device)
        self._began = _now(self._device)

    def shares(self) -> dict[str, float]:
        """End the watch: shares from 0 to 1 by what they are of; none if the denoiser was never called.

        The arithmetic is counted on one call of each shape, done again; the peak is the fastest of a few products of
        large matrices in the pipeline's precision. What is neither denoiser nor decoder counts as idle.
        """
        _synchronize(self._device)
        whole = _now(self._device) - self._began
        self._calls.end()
        self._decodes.end()
        if not self._calls.spans:
            return {}
        busy = self._calls.seconds()
        rate = self._calls.count_flops() / busy
        found = {
            "denoiser, share of the time": busy / whole,
            "denoiser, share of the matmul peak": rate / matmul_peak(self._device, self._dtype),
        }
        if self._device.type != "cpu":
            found["device idle, share of the time"] = 1 - (busy + self._decodes.seconds()) / whole
        return found


class _Calls:
    """The calls of a method of a network: when each began and ended on its device."""

    def __init__(self, network: Any, method: str, device: torch.device) -> None:
        self.spans: list[tuple[Any, Any]] = []
        self._network, self._method, self._device = network, method, device
        self._plain = getattr(network, method)
        self._examples: dict[Any, tuple[int, tuple[Any, ...], dict[str, Any]]] = {}
        """By the shape of the first argument how often it came, and the arguments of one call."""
        self._own = vars(network).get(method)

        @functools.wraps(self._plain)  # a pipeline reads the signature
        def call(*args: Any, **more: Any) -> Any:
            return self._call(*args, **more)

        setattr(network, method, call)

    def _call(self, *args: Any, **more: Any) -> Any:
        shape = tuple(getattr(args[0] if args else next(iter(more.values())), "shape", ()))
        count, *_ = self._examples.get(shape, (0,))
        self._examples[shape] = (count + 1, args, more)
        began = _mark(self._device)
        output = self._plain(*args, **more)
        self.spans.append((began, _mark(self._device)))
        return output

    def count_flops(self) -> float:
        """Of all calls together."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        total = 0.0
        for count, args, more in self._examples.values():
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                self._plain(*args, **more)
            total += count * counter.get_total_flops()
        return total

    def seconds(self) -> float:
        """Of all calls together."""
        return sum(
            ended - began if isinstance(began, float) else began.elapsed_time(ended) / 1000
            for began, ended in self.spans
        )

    def end(self) -> None:
        """Watch no longer."""
        delattr(self._network, self._method)
        if self._own is not None:
            setattr(self._network, self._method, self._own)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of the fastest of a few products of large square matrices; on a CPU a second of CPU time."""
    import torch

    side = CPU_SIDE if device.type == "cpu" else ACCELERATOR_SIDE
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(TRIES):
        _synchronize(device)
        began = _now(device)
        torch.mm(a, b)
        _synchronize(device)
        best = min(best, _now(device) - began)
    return 2 * side**3 / best


def _now(device: torch.device) -> float:
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def _mark(device: torch.device) -> Any:
    """A moment: of the device's stream, or of the process's CPU time."""
    if device.type == "cpu":
        return _now(device)
    import torch

    event = torch.Event(device, enable_timing=True)
    event.record()
    return event


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        import torch

        torch.accelerator.synchronize()
