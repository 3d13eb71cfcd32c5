"""Signatures of classes that are made of a mixin and a stock class: what diffusers, editors and we read of a method."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints


def with_signature(
    function: Callable[..., Any], stock: Callable[..., Any], ours: Sequence[inspect.Parameter]
) -> Callable[..., Any]:
    """A copy of a method that shows the parameters of the stock class's method, then ours."""

    @functools.wraps(function)
    def method(self: Any, *args: Any, **arguments: Any) -> Any:
        return function(self, *args, **arguments)

    parameters = list(inspect.signature(stock).parameters.values())
    last = [parameters.pop()] if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    shown: Any = method
    shown.__signature__ = inspect.Signature([*parameters, *ours, *last])
    shown.__annotations__ = {**get_type_hints(stock), **{entry.name: entry.annotation for entry in ours}}
    del shown.__wrapped__  # whoever looks behind it would see the mixin's own hints
    return method
