"""Results that are kept between runs, under a fingerprint of all that they depend on.

A kept result must never be wrong. So tensors and plain values are compared by content, and all other
objects by identity, as long as they live. If neither is possible, nothing is kept.
"""

from __future__ import annotations

import hashlib
import types
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from enum import Enum
from typing import Any, Generic, TypeVar

import numpy as np
import torch

Value = TypeVar("Value")
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
DEEPEST = 50


class Fingerprint:
    """A digest of values, and the objects that must still be alive for it to mean the same.

    Args:
        leave_out: keys of dictionaries to ignore.
    """

    def __init__(self, *values: Any, leave_out: frozenset[str] = frozenset()) -> None:
        self.sure = True
        """Whether every value that was added could be compared."""
        self._leave_out = leave_out
        self._hash = hashlib.sha256()
        self._objects: list[weakref.ref[Any]] = []
        for value in values:
            self.add(value)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    @property
    def alive(self) -> bool:
        return all(reference() is not None for reference in self._objects)

    def add(self, value: Any, depth: int = 0) -> None:
        """Dictionaries, lists and tensors by content; other objects by identity."""
        if depth > DEEPEST:
            self.sure = False
        elif isinstance(value, PLAIN):
            self._mark(f"{type(value).__name__}:{value!r}")
        elif isinstance(value, Enum):
            self._mark(f"{type(value).__qualname__}.{value.name}")
        elif isinstance(value, torch.Tensor):
            self._add_tensor(value)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self._mark(f"array:{value.dtype}:{value.shape}:")
            self._hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Mapping):
            kept = [(key, one) for key, one in value.items() if key not in self._leave_out]
            self._mark(f"mapping:{len(kept)}")
            for key, one in kept:
                self.add(key, depth + 1)
                self.add(one, depth + 1)
        elif isinstance(value, list | tuple):
            self._mark(f"{type(value).__name__}:{len(value)}")
            for one in value:
                self.add(one, depth + 1)
        elif isinstance(value, types.MethodType):  # a new object at each access, unlike its parts
            self.add(value.__func__, depth + 1)
            self.add(value.__self__, depth + 1)
        else:
            self.add_identity(value)

    def add_identity(self, value: Any) -> None:
        try:
            self._objects.append(weakref.ref(value))
        except TypeError:  # it could be freed, and another object get its address
            self.sure = False
        self._mark(f"object:{id(value)}")

    def _add_tensor(self, value: torch.Tensor) -> None:
        try:
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            self._mark(f"tensor:{value.dtype}:{tuple(value.shape)}:")
            self._hash.update(content.numpy().tobytes())
        except (RuntimeError, TypeError):  # sparse, quantized, nested, ...
            self.sure = False

    def _mark(self, text: str) -> None:
        self._hash.update(text.encode(errors="surrogatepass") + b"\0")


class Memory(Generic[Value]):
    """Keeps the last few results.

    Args:
        most: how many.
    """

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._kept: OrderedDict[str, tuple[Fingerprint, Value]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, fingerprint: Fingerprint) -> Value | None:
        """The result kept under an equal fingerprint, or None."""
        self._forget_the_dead()
        if not fingerprint.sure or fingerprint.digest not in self._kept:
            return None
        self._kept.move_to_end(fingerprint.digest)
        return self._kept[fingerprint.digest][1]

    def put(self, fingerprint: Fingerprint, value: Value) -> None:
        """Keep a result, unless the fingerprint isn't sure."""
        if not fingerprint.sure:
            return
        self._kept[fingerprint.digest] = (fingerprint, value)
        self._kept.move_to_end(fingerprint.digest)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def _forget_the_dead(self) -> None:
        for digest in [key for key, (one, _) in self._kept.items() if not one.alive]:
            del self._kept[digest]
