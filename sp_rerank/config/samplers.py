"""AUTOMATIC1111's names of samplers and what they are in diffusers. A table; knows no scheduler itself.

The pairs are those of diffusers' own documentation (docs/source/en/api/schedulers/overview.md). A1111's samplers that
diffusers has no match for (DPM++ 2S a, DPM fast, DPM adaptive, Restart) are not in it, nor is LCM, which needs a model
of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

KARRAS: Mapping[str, object] = MappingProxyType({"use_karras_sigmas": True})
SDE: Mapping[str, object] = MappingProxyType({"algorithm_type": "sde-dpmsolver++"})


@dataclass(frozen=True, slots=True)
class SamplerName:
    """A sampler of AUTOMATIC1111 in diffusers.

    Attributes:
        scheduler: Class name without "Scheduler".
        config: Values of the scheduler's configuration that make it this sampler; without any it is the class as it is.
    """

    scheduler: str
    config: Mapping[str, object] = field(default_factory=dict[str, object])


A1111_SAMPLERS: Mapping[str, SamplerName] = MappingProxyType({
    "DPM++ 2M": SamplerName("DPMSolverMultistep"),
    "DPM++ 2M Karras": SamplerName("DPMSolverMultistep", KARRAS),
    "DPM++ 2M SDE": SamplerName("DPMSolverMultistep", SDE),
    "DPM++ 2M SDE Karras": SamplerName("DPMSolverMultistep", {**SDE, **KARRAS}),
    "DPM++ SDE": SamplerName("DPMSolverSinglestep"),
    "DPM++ SDE Karras": SamplerName("DPMSolverSinglestep", KARRAS),
    "DPM2": SamplerName("KDPM2Discrete"),
    "DPM2 Karras": SamplerName("KDPM2Discrete", KARRAS),
    "DPM2 a": SamplerName("KDPM2AncestralDiscrete"),
    "DPM2 a Karras": SamplerName("KDPM2AncestralDiscrete", KARRAS),
    "Euler": SamplerName("EulerDiscrete"),
    "Euler a": SamplerName("EulerAncestralDiscrete"),
    "Heun": SamplerName("HeunDiscrete"),
    "LMS": SamplerName("LMSDiscrete"),
    "LMS Karras": SamplerName("LMSDiscrete", KARRAS),
    "DDIM": SamplerName("DDIM"),
    "PLMS": SamplerName("PNDM"),
    "UniPC": SamplerName("UniPCMultistep"),
})


def find_sampler(name: str) -> tuple[str, SamplerName] | None:
    """A sampler by A1111's name in upper or lower case, with the name as A1111 writes it; None for another name."""
    wanted = " ".join(name.split()).casefold()
    return next(((known, entry) for known, entry in A1111_SAMPLERS.items() if known.casefold() == wanted), None)


def a1111_name(scheduler: str) -> str:
    """A1111's name of a scheduler as run.json names it ("PNDMScheduler" -> "PLMS"), else the class name, shortened."""
    short = scheduler.removesuffix("Scheduler")
    plain = {entry.scheduler: name for name, entry in A1111_SAMPLERS.items() if not entry.config}
    return plain.get(short, short)
