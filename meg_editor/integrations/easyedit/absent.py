"""Stubs for optional packages which EasyEdit imports."""

from __future__ import annotations

from typing import Any


class Absent(type):
    """Metaclass of stubs: they can be named, subclassed and subscripted, but not called.

    Raises:
        ImportError: on a call, naming what is missing.
    """

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(f"{cls.__qualname__}.{name}")

    def __getitem__(cls, item: Any) -> Any:
        return cls  # as in an annotation: Absent[int]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        missing = next(base for base in reversed(cls.__mro__[:-1]) if isinstance(base, Absent))
        raise ImportError(
            f"this part of EasyEdit needs {missing.__qualname__}, which is not installed or has "
            f"left its package; install {missing.__qualname__.partition('.')[0]}"
        )


def absent(name: str) -> Any:
    """Stub for the module, class or function of that dotted name.

    Example:
        >>> absent("fairscale.nn").checkpoint_wrapper(None)
        Traceback (most recent call last):
        ...
        ImportError: this part of EasyEdit needs fairscale.nn.checkpoint_wrapper, which is not
        installed or has left its package; install fairscale
    """
    return Absent(name.rpartition(".")[2], (), {"__qualname__": name, "__module__": __name__})
