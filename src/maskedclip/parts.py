"""Parts by name: a masking or a loss is one module, found by its file's name, imported when a recipe names it.

A part's module holds a dataclass `Options`, its fields in a recipe, and `build(options, context)`.  Parts of other
packages announce themselves by entry points (`maskedclip.masking`, `maskedclip.terms`), or by `register`.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import math
import pkgutil
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, get_type_hints

from maskedclip.errors import UserError

Slot = Literal["masking", "terms"]

_PACKAGES: dict[Slot, tuple[str, ...]] = {
    "masking": ("maskedclip.objectives.masking",),
    "terms": (
        "maskedclip.objectives.targets",
        "maskedclip.objectives.image_text",
        "maskedclip.objectives.texts",
    ),
}
_registered: dict[Slot, dict[str, ModuleType]] = {"masking": {}, "terms": {}}


@dataclass(frozen=True, kw_only=True)
class MaskingOptions:
    """Fields of a masking in `objective.masking_options`; and what it needs, as class variables."""

    reads_text: ClassVar[bool] = False
    """Whether it needs the texts of the paired images."""
    needs_teacher: ClassVar[bool] = False
    """Whether it needs the moving average of encoder and bridge."""

    @property
    def reads_pairs(self) -> bool:
        """Whether it reads the texts that were retrieved for images without one (data.pairs)."""
        return False

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""


@dataclass(frozen=True, kw_only=True)
class TermOptions:
    """Fields of a loss in `objective.terms`; and what it needs, as class variables."""

    weight: float = 1.0
    """Of the loss in the sum; 0 leaves it out."""
    ramp: float = 0.0
    """Share of the steps over which the weight grows from 0."""
    reads_text: ClassVar[bool] = False
    """Whether it needs the texts of the paired images."""
    reads_loose: ClassVar[bool] = False
    """Whether it also reads texts without images (data.texts)."""
    reads_documents: ClassVar[bool] = False
    """Whether it reads several images and texts of a patient together (data.images_per_document)."""
    masks: ClassVar[bool] = False
    """Whether it reads the masked pass."""
    shares_space: ClassVar[bool] = False
    """Whether it trains the space that images and texts share, so that features cannot collapse."""
    needs_teacher: ClassVar[bool] = False
    """Whether it needs the moving average of encoder and bridge."""

    @property
    def reads_pairs(self) -> bool:
        """Whether it also reads texts that were retrieved for images without one (data.pairs)."""
        return False

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        if not 0 <= self.weight < math.inf:
            raise UserError(f"objective.terms: weight {self.weight} is no number from 0 on; 0 leaves the loss out")
        if not 0 <= self.ramp <= 1:
            raise UserError(f"objective.terms: ramp {self.ramp} is outside [0, 1]; 0.1 is a tenth of the steps")


def register(slot: Slot, name: str, module: ModuleType) -> None:
    """Make a module known as a part of this process.

    Args:
        slot: `masking` or `terms`.
        name: how recipes name it.
        module: has `Options` and `build`.

    Raises:
        UserError: the name is taken by another module.
    """
    before = _registered[slot].get(name)
    if name in _shipped(slot) or (before is not None and before.__file__ != module.__file__):
        raise UserError(f"{slot}: a part is named {name} already; choose another name")
    _registered[slot][name] = _checked(module, slot, name)


def register_file(path: Path) -> str:
    """Make a Python file of a user's own known as a part, under its file's name; it runs, so give only files you trust.

    Its `Options` tell the slot.  Returns the slot and the name, for a person.

    Raises:
        UserError: it is no part.
    """
    name = path.stem
    spec = importlib.util.spec_from_file_location(f"maskedclip_part_{name}", path) if path.suffix == ".py" else None
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"--part {path}: no such Python file; give the file of a part, see docs/extending.md")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"--part {path}: cannot be imported ({type(error).__name__}: {error}); mend it") from None
    options = getattr(module, "Options", None)
    slot: Slot = "masking" if isinstance(options, type) and issubclass(options, MaskingOptions) else "terms"
    register(slot, name, module)
    return f"{slot} {name}"


def sources() -> dict[str, Path]:
    """The files of the parts that were registered, by name."""
    found = {name: module.__file__ for modules in _registered.values() for name, module in modules.items()}
    return {name: Path(file) for name, file in found.items() if file is not None}


def known(slot: Slot) -> list[str]:
    """The names of all parts of a slot, sorted; none is imported."""
    return sorted({*_shipped(slot), *_registered[slot], *(entry.name for entry in _announced(slot))})


def find(slot: Slot, name: str) -> ModuleType:
    """The module of a part.

    Raises:
        UserError: there is none of this name; the message lists the known ones.
    """
    if name in _registered[slot]:
        return _registered[slot][name]
    if name in _shipped(slot):
        return importlib.import_module(_shipped(slot)[name])
    for entry in _announced(slot):
        if entry.name == name:
            try:
                loaded = entry.load()
            except Exception as error:
                raise UserError(
                    f"objective.{slot}: {name}: the package that offers it cannot be imported "
                    f"({type(error).__name__}: {error}); mend or remove it"
                ) from None
            return _checked(loaded, slot, name)
    near = difflib.get_close_matches(name, known(slot), 1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"objective.{slot}: {name}: no such part; {meant}known: {', '.join(known(slot))}")


def read_options(slot: Slot, name: str, values: Mapping[str, Any]) -> Any:
    """The typed options of a part.

    Raises:
        UserError: no such part, no such option, a value of the wrong type or outside its range.
    """
    kind = find(slot, name).Options
    if not values:
        return kind()
    import jsonargparse

    where = f"objective.masking_options ({name})" if slot == "masking" else f"objective.terms.{name}"
    fields = [entry.name for entry in dataclasses.fields(kind)]
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: {values!r} is no mapping; give fields of {', '.join(fields) or 'none'}")
    unknown = sorted(set(values) - set(fields))
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), fields, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{where}.{unknown[0]}: no such option; {meant}known: {', '.join(fields) or 'none'}")
    hints = get_type_hints(kind)
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    for key in values:
        parser.add_argument(f"--{key}", type=hints[key])
    try:
        typed = parser.parse_object({key: _plain(value) for key, value in values.items()}).as_dict()
    except jsonargparse.ArgumentError as error:
        message = re.sub(r"Parser key \"(.*?)\":", r"\1:", " ".join(str(error).split()))
        raise UserError(f"{where}.{message[:400]}") from None
    return kind(**{key: typed[key] for key in values})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@cache
def _shipped(slot: Slot) -> dict[str, str]:
    """Modules of this package by name; files that begin with _ help parts and are none."""
    found = {}
    for package in _PACKAGES[slot]:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        for entry in pkgutil.iter_modules(spec.submodule_search_locations):
            if not entry.name.startswith("_"):
                found[entry.name] = f"{package}.{entry.name}"
    return found


@cache
def _announced(slot: Slot) -> tuple[Any, ...]:
    return tuple(entry_points(group=f"maskedclip.{slot}"))


def _checked(module: Any, slot: Slot, name: str) -> ModuleType:
    base = MaskingOptions if slot == "masking" else TermOptions
    options = getattr(module, "Options", None)
    if not (isinstance(options, type) and issubclass(options, base) and callable(getattr(module, "build", None))):
        raise UserError(
            f"{slot}: {name} is no part; its module needs a dataclass Options, derived from "
            f"maskedclip.parts.{base.__name__}, and a function build(options, context)"
        )
    return module
