"""What all parts of a model have in common."""

from collections.abc import Mapping
from typing import Any, ClassVar


class Part:
    """A likelihood, prior, posterior or network.

    Some attributes of a class describe its methods, and some methods repeat others in a faster
    form. A user's class that inherits from a part of skvae may change the methods described or
    repeated. So it does not inherit these names: it has those of the abstract class, unless it
    states its own.
    """

    # Whether `initialise` sets every value of the modules, which may then be made without values.
    initialises_all: ClassVar[bool] = False
    # Whether it is a user's: its modules may write into what they are given, and into themselves.
    is_foreign: ClassVar[bool] = True
    # Names that a user's class does not inherit from a part of skvae.
    not_inherited: ClassVar[tuple[str, ...]] = ("initialises_all", "is_foreign")

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Take back what a user's class would inherit."""
        super().__init_subclass__(**kwargs)
        if _is_skvaes(cls):
            return
        abstract = next(c for c in cls.__mro__ if "not_inherited" in vars(c))
        for name in cls.not_inherited:
            owner = next(c for c in cls.__mro__ if name in vars(c))
            if _is_skvaes(owner):
                source = abstract if name in vars(abstract) else Part
                setattr(cls, name, vars(source)[name])


def look_up(kind: str, value: Any, named: Mapping[str, Any]) -> Any:
    """Return the part that `value` names, or `value` itself if it is no name; `kind` is a word."""
    try:
        return named.get(value, value)
    except TypeError as error:
        raise TypeError(
            f"A {kind} has to be a value, which has a hash. Got {value!r} ({error}): make its "
            "class a frozen dataclass, @dataclass(frozen=True), with fields such as numbers, "
            "strings and tuples."
        ) from None


def _is_skvaes(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "skvae"
