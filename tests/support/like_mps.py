"""Imitates a Mac's GPU: it has no float64, and non-blocking copies corrupt data there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

WORDS = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
CONVERSIONS = ("to", "type", "double")


class LikeMPS(torch.Tensor):
    """A tensor that refuses to become float64 before it is on the CPU, in torch's own words."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        every = (*args, *(kwargs or {}).values())
        given = [str(one) for one in every if isinstance(one, (str, torch.dtype, torch.device))]
        name = getattr(func, "__name__", "")
        as_float64 = name == "double" or {"torch.float64", "torch.DoubleTensor"} & {*given}
        if name in CONVERSIONS and as_float64:
            raise TypeError(WORDS)
        result = super().__torch_function__(func, types, args, kwargs or {})
        to_cpu = name == "cpu" or (name in CONVERSIONS and "cpu" in given)
        return result.as_subclass(torch.Tensor) if to_cpu else result


@contextmanager
def only_waiting_copies() -> Iterator[None]:
    """Refuses non-blocking copies, which would corrupt data there."""

    def refusing(copy: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def checked(*args: Any, non_blocking: bool = False, **kwargs: Any) -> torch.Tensor:
            assert not non_blocking, "a copy that is not waited for corrupts data on a Mac's GPU"
            return copy(*args, **kwargs)

        return checked

    copies = {name: getattr(torch.Tensor, name) for name in ("to", "copy_")}
    for name, copy in copies.items():
        setattr(torch.Tensor, name, refusing(copy))
    try:
        yield
    finally:
        for name, copy in copies.items():
            setattr(torch.Tensor, name, copy)
