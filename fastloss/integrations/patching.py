# SPDX-License-Identifier: MIT
"""The mechanism of every integration: functions exchanged wherever a framework refers to them.

A method is exchanged in its class. An adapter (:mod:`fastloss.integrations.torchvision` is one) is
a :class:`Framework`: a name, the versions it was tested with, and its replacements. It imports
nothing of the framework itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

__all__ = ["Framework", "FrameworkStatus", "Patch", "Replacement"]

Function = Callable[..., Any]
# What is always replaced (None), or what an option asks for.
Part = tuple[str, str] | None


@dataclass(frozen=True)
class Replacement:
    """A function of a framework, and what stands in for it.

    Attributes:
        module: The module that defines the function.
        name: The function's name there; a method's with that of its class, ``"DiceLoss.forward"``.
            Of several, separated by ``|``, the first that the version installed has.
        wrap: Makes the stand-in from the original, which keeps serving the calls that the kernels
            do not take.
    """

    module: str
    name: str
    wrap: Callable[[Function], Function]


@dataclass(frozen=True)
class Framework:
    """A package whose functions can be replaced.

    Attributes:
        name: Of the package, as it is imported.
        oldest: The oldest version tested.
        newest: The newest version tested. Others than these are refused: a drop-in that was never
            compared with what it replaces is none.
        replacements: What is replaced, all of it or nothing.
        options: What is replaced beside that where an option of :func:`fastloss.patch` asks for it,
            by the option and its value: ``("criterion", "fused")``.
        within: Names are exchanged in these modules and in those below them: the package, unless it
            is known that it holds a function elsewhere to compare it with, or that another one
            imports its functions.
        before: Called before anything is exchanged.
        distribution: What is installed, where that has another name.
    """

    name: str
    oldest: tuple[int, ...]
    newest: tuple[int, ...]
    replacements: tuple[Replacement, ...]
    options: Mapping[tuple[str, str], tuple[Replacement, ...]] = field(default_factory=dict)
    within: tuple[str, ...] = ()
    before: Callable[[], None] = lambda: None
    distribution: str = ""

    @property
    def supported(self) -> str:
        """The versions tested, in words."""
        return f"{_dotted(self.oldest)} to {_dotted(self.newest)}"

    def installed(self) -> str | None:
        """The version installed, or None. Does not import the framework."""
        try:
            return importlib.metadata.version(self.distribution or self.name)
        except importlib.metadata.PackageNotFoundError:
            return None

    def status(self) -> FrameworkStatus:
        """What :func:`fastloss.patch.available` tells of the framework."""
        version = self.installed()
        usable = (
            version is not None
            and _release(version, len(self.oldest)) >= self.oldest
            and _release(version, len(self.newest)) <= self.newest
        )
        return FrameworkStatus(version, self.supported, usable)


class FrameworkStatus(NamedTuple):
    """What is known of a framework.

    Attributes:
        installed: The version installed, or None.
        supported: The versions that can be patched, in words.
        usable: Whether the version installed is one of them.
    """

    installed: str | None
    supported: str
    usable: bool


class Patch:
    """A framework that computes with fastloss, until :meth:`undo` or the end of a ``with`` block.

    Patches of one framework nest: it gets its own functions back when the last one is undone.
    """

    def __init__(self, framework: Framework, options: Mapping[str, str] | None = None) -> None:
        self._framework = framework
        # The functions that are always replaced, and those of each option, by themselves.
        self._parts: list[Part] = [None, *(options or {}).items()]
        _begin(framework, self._parts)
        self._active = True

    def undo(self) -> None:
        """Ends this patch. Undoing twice does nothing more."""
        if self._active:
            self._active = False
            _end(self._framework, self._parts)

    def __enter__(self) -> Patch:
        if not self._active:
            raise RuntimeError(
                f"this patch of {self._framework.name} was undone: call fastloss.patch again"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        state = "active" if self._active else "undone"
        return f"<fastloss patch of {self._framework.name}, {state}>"


@dataclass(frozen=True)
class _Pair:
    """A function and what takes its place; of a method, the class too."""

    old: Function
    new: Function
    owner: type | None

    def back(self) -> _Pair:
        """The other way round."""
        return _Pair(self.new, self.old, self.owner)


@dataclass
class _Exchange:
    """What was exchanged in a framework, and how many patches want it so."""

    pairs: list[_Pair]
    patches: int = field(default=0)


_exchanges: dict[tuple[str, Part], _Exchange] = {}
_lock = threading.Lock()


def _begin(framework: Framework, parts: Sequence[Part]) -> None:
    with _lock:
        # Whatever can fail fails here, before anything is touched.
        new = {
            part: _Exchange(_prepare(framework, part))
            for part in parts
            if (framework.name, part) not in _exchanges
        }
        for part, exchange in new.items():
            _swap(framework, exchange.pairs)
            _exchanges[framework.name, part] = exchange
        for part in parts:
            _exchanges[framework.name, part].patches += 1


def _end(framework: Framework, parts: Sequence[Part]) -> None:
    with _lock:
        for part in parts:
            exchange = _exchanges[framework.name, part]
            exchange.patches -= 1
            if exchange.patches == 0:
                # Looked up anew: modules imported meanwhile have the stand-ins.
                _swap(framework, [pair.back() for pair in exchange.pairs])
                del _exchanges[framework.name, part]


def _prepare(framework: Framework, part: Part) -> list[_Pair]:
    """Every original with its stand-in."""
    version = framework.installed()
    if version is None:
        raise ImportError(
            f"{framework.name} is not installed; fastloss can patch {framework.supported}"
        )
    if not framework.status().usable:
        raise ImportError(
            f"{framework.name} {version} is installed, but fastloss was tested with "
            f"{framework.supported} only and patches no other"
        )
    framework.before()
    replacements = framework.replacements if part is None else framework.options[part]
    return [_find(replacement) for replacement in replacements]


def _find(replacement: Replacement) -> _Pair:
    """Finds the original. Imports the framework where that has not happened yet."""
    errors = []
    for full_name in replacement.name.split("|"):
        *owners, name = full_name.split(".")
        try:
            holder = importlib.import_module(replacement.module)
            for owner in owners:
                holder = getattr(holder, owner)
            # Not what a class inherits: that would be exchanged for its other heirs as well.
            original = vars(holder)[name]
        except Exception as error:  # a package built for another torch fails in ways of its own
            errors.append(error)
            continue
        of_class = holder if isinstance(holder, type) else None
        return _Pair(original, replacement.wrap(original), of_class)
    raise ImportError(
        f"{replacement.module}.{replacement.name} cannot be imported, nothing was patched: "
        f"{errors[0]}"
    ) from errors[0]


def _swap(framework: Framework, pairs: Iterable[_Pair]) -> None:
    """Exchanges functions under every name that a module of the framework has for them.

    Not by a list of modules: ``from .ops import f`` can stand anywhere, and under another name.
    """
    new_by_id = {}
    for pair in pairs:
        if pair.owner is None:
            new_by_id[id(pair.old)] = pair.new
        else:
            setattr(pair.owner, pair.old.__name__, pair.new)
    within = tuple(f"{name}." for name in framework.within or (framework.name,))
    for name, module in list(sys.modules.items()):
        if module is None or not f"{name}.".startswith(within):
            continue
        names = vars(module)
        # The dictionary is written, not the attributes: that cannot fail half way.
        names.update(
            {key: new_by_id[id(value)] for key, value in names.items() if id(value) in new_by_id}
        )


def _release(version: str, length: int) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", version)]
    return tuple((numbers + [0] * length)[:length])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
