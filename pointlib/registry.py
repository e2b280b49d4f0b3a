"""Names for constructors, so that a config or a checkpoint says what to build with plain strings.

A registered constructor's signature is its schema: arguments are checked against it before anything is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Constructor = TypeVar("Constructor", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Constructors of one kind of thing, found by name.

    Args:
        kind: What the names stand for, for example `"model"`; error messages use it.

    Example:
        >>> SHAPES: Registry[str] = Registry("shape")
        >>> @SHAPES.register()
        ... def box(size: float = 1.0) -> str:
        ...     return f"box of {size} m"
        >>> SHAPES.create("box", size=2.0)
        'box of 2.0 m'
        >>> SHAPES.create("bax")
        Traceback (most recent call last):
        ValueError: shape: name must be a registered one, got 'bax'; did you mean 'box'?
    """

    def __init__(self, kind: str) -> None:
        """Start empty."""
        self.kind = kind
        self._constructors: dict[str, Callable[..., T]] = {}

    def __contains__(self, name: object) -> bool:
        """Whether something is registered under this name."""
        return name in self._constructors

    def register(self, name: str | None = None) -> Callable[[Constructor], Constructor]:
        """Decorate a function or class to make it available under a name.

        Args:
            name: The name; by default the decorated object's own.

        Raises:
            ValueError: The name is taken.
        """
        if not (name is None or isinstance(name, str)):
            raise TypeError(
                f"register: name must be a str or None, got {name!r}; "
                "write @registry.register(), with the parentheses"
            )

        def decorate(constructor: Constructor) -> Constructor:
            key = constructor.__name__ if name is None else name
            if key in self._constructors:
                raise ValueError(
                    f"register: name must be new, got the {self.kind} {key!r}, which "
                    f"{_origin(self._constructors[key])} has registered; choose another"
                )
            self._constructors[key] = constructor
            return constructor

        return decorate

    def get(self, name: str) -> Callable[..., T]:
        """Return the constructor registered under a name.

        Raises:
            ValueError: There is none; the message names the nearest ones.
        """
        if name not in self._constructors:
            raise ValueError(
                f"{self.kind}: name must be a registered one, got {name!r}"
                f"{_suggestion(name, self.names())}"
            )
        return self._constructors[name]

    def create(self, name: str, /, **arguments: Any) -> T:
        """Call the constructor registered under a name.

        Args:
            name: A registered name.
            **arguments: The constructor's keyword arguments.

        Raises:
            ValueError: The name is unknown.
            TypeError: An argument is unknown or a required one is missing; nothing has been called then.
        """
        constructor = self.get(name)
        self._check_arguments(name, inspect.signature(constructor), arguments)
        return constructor(**arguments)

    def names(self, pattern: str = "*") -> list[str]:
        """Return the names that match a shell pattern such as `"spv*"`, sorted."""
        return sorted(name for name in self._constructors if fnmatchcase(name, pattern))

    def _check_arguments(
        self, name: str, signature: inspect.Signature, arguments: dict[str, Any]
    ) -> None:
        shown = f"signature: {name}{signature.replace(return_annotation=inspect.Signature.empty)}"
        parameters = signature.parameters.values()
        known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            for argument in arguments:
                if argument not in known:
                    raise TypeError(
                        f"{self.kind} {name!r}: arguments must be among those of its signature, "
                        f"got {argument!r}{_suggestion(argument, known)}\n{shown}"
                    )
        missing = [
            key
            for key in known
            if key not in arguments and signature.parameters[key].default is inspect.Parameter.empty
        ]
        if missing:
            raise TypeError(
                f"{self.kind} {name!r}: required arguments must be given, "
                f"got none for {', '.join(map(repr, missing))}\n{shown}"
            )


def _origin(constructor: Callable[..., Any]) -> str:
    return f"{constructor.__module__}.{constructor.__qualname__}"


def _suggestion(word: object, known: list[str]) -> str:
    if not known:
        return "; there are none"
    nearest = get_close_matches(str(word), known, n=3, cutoff=0.5)
    if nearest:
        return f"; did you mean {' or '.join(map(repr, nearest))}?"
    return f"; known: {', '.join(known)}"
