"""What a study is: a YAML file -> the cells of its grid.

A cell is one training and one evaluation.  Cells differ in method, size, share of the texts, seed and number of steps.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from maskedclip.errors import UserError
from maskedclip.evaluation.evaluate import PROTOCOLS
from maskedclip.recipe import Recipe, load_recipe, shipped_recipes
from maskedclip.study.study_yaml import KeyedReader, read_yaml

SHIPPED = Path(__file__).parent / "studies"
PATHS = ("model.image_weights", "model.text_encoder", "data.pairs", "data.texts")
"""Fields of a recipe that may name a file or folder, which a study file names relative to itself."""
_PLACEHOLDER = re.compile(r"\{\w*\}")
DEFAULT_SIZE = "default"
# Fields that belong to the cell, with the key of a study that gives them.
_OF_THE_CELL = {
    "training.steps": "steps:",
    "data.text_fraction": "grid: text_fractions:",
    "seed": "grid: seeds:",
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Recipes to stack, and fields to set: one method, or one size."""

    config: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """One training and one evaluation."""

    method: str
    size: str
    text_fraction: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Its folder below OUT/cells."""
        return f"{self.method}-{self.size}-text{self.text_fraction:g}-seed{self.seed}-steps{self.steps}"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of the grid: every combination of these is a cell."""

    methods: tuple[str, ...]
    text_fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    sizes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as its file says it.

    Attributes:
        about: a paragraph for the page.
        data: stores to train on; their fingerprints are recorded.
        evaluate: stores to evaluate on.
        methods, sizes: by name.
        fields: recipe fields of all cells, the command line's among them.
        overrides: recipe fields of the command line, which also win against those of methods and sizes.
        grid: which combinations are run.
        steps: optimizer steps of every cell of the comparison at equal steps.
        equal_time: a method; every cell then also runs for as many steps as take the time that this method needs for
            `steps`; None leaves that comparison out.
        reference: the method that the others are compared with.
        chain: methods of the ablation, each compared with the one before it.
        protocols: of `evaluate`.
        split: "test", or "development": choices are then made on validation rows and the test rows stay unread.
        precision: of the features that are evaluated: "32-true", or "bf16-mixed", in half the time on processors.
        replicates: of the bootstrap.
        slurm: options for sbatch; true is an option without a value, false and null leave one out.
    """

    name: str
    about: str = ""
    data: tuple[Path, ...]
    evaluate: tuple[Path, ...]
    methods: Mapping[str, Choice]
    sizes: Mapping[str, Choice]
    fields: Mapping[str, Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    grid: tuple[Block, ...]
    steps: int
    equal_time: str | None = None
    reference: str
    chain: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ("linear", "knn", "zero_shot", "retrieval")
    split: str = "test"
    precision: str = "32-true"
    replicates: int = 1000
    slurm: Mapping[str, str | bool | None] = field(default_factory=dict)

    @cached_property
    def combinations(self) -> list[tuple[str, str, float, int]]:
        """Method, size, text fraction and seed of every cell, each once; seed by seed: early results are whole."""
        found = {
            (method, size, fraction, seed): seed
            for block in self.grid
            for seed in block.seeds
            for fraction in block.text_fractions
            for size in block.sizes
            for method in block.methods
        }
        return sorted(found, key=lambda key: found[key])

    @cached_property
    def best_metrics(self) -> tuple[str, ...]:
        """What chooses the steps whose weights are evaluated (`training.best_metric`), of all methods and sizes."""
        cells = {(method, size): (fraction, seed) for method, size, fraction, seed in self.combinations}
        trainings = [self.recipe(*pair, *rest, self.steps).training for pair, rest in cells.items()]
        chosen = (training.best_metric for training in trainings if training.validate_every)
        return tuple(sorted({metric for metric in chosen if metric is not None}))

    def recipe(self, method: str, size: str, text_fraction: float, seed: int, steps: int) -> Recipe:
        """The recipe of a cell; "{seed}" and "{text_fraction}" in a field that is a text stand for those of the cell.

        Raises:
            UserError: an unknown field, a value of the wrong type, or a contradiction.
        """
        key = (method, size, text_fraction, seed, steps)
        if key not in self._read:
            self._read[key] = self._recipe(*key)
        return self._read[key]

    @cached_property
    def _read(self) -> dict[tuple[str, str, float, int, int], Recipe]:
        """Recipes by cell and steps: a report asks for each dozens of times."""
        return {}

    def _recipe(self, method: str, size: str, text_fraction: float, seed: int, steps: int) -> Recipe:
        chosen = (self.methods[method], self.sizes[size])
        configs = [name for part in chosen for name in part.config]
        fields = {**self.fields, **chosen[1].fields, **chosen[0].fields, **self.overrides}
        own = {"{seed}": str(seed), "{text_fraction}": f"{text_fraction:g}"}
        fields = {name: _filled(value, own) for name, value in fields.items()}
        for name, value in fields.items():
            left = _PLACEHOLDER.search(value) if isinstance(value, str) else None
            if left:
                raise UserError(f"study {self.name}, {name}: {left[0]} is none of {', '.join(own)}")
        fields |= {"data.text_fraction": text_fraction, "training.steps": steps, "seed": seed}
        try:
            return load_recipe(configs, [f"--{name}={_text(value)}" for name, value in fields.items()])
        except UserError as error:
            raise UserError(f"study {self.name}, method {method}, size {size}: {error}") from None


def _filled(value: Any, own: Mapping[str, str]) -> Any:
    """A text with what belongs to the cell put in; other values as they are."""
    if isinstance(value, str):
        for name, text in own.items():
            value = value.replace(name, text)
    return value


def _text(value: Any) -> str:
    """A value as a flag of the recipe gives it; what is a text already the recipe reads itself ("off", "1e-3")."""
    if isinstance(value, str):
        return value
    if value is None:
        return "null"
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def refuse_cell_fields(where: str, fields: Mapping[str, Any]) -> None:
    """Refuse recipe fields in which the cells of a study differ, also where they stand in a section of fields.

    Raises:
        UserError: names the field and the key that gives it.
    """
    for name, value in fields.items():
        inner = [f"{name}.{key}" for key in value] if isinstance(value, Mapping) else []
        for given in (name, *inner):
            if given in _OF_THE_CELL:
                raise UserError(
                    f"{where}{given}: is the cell's own in a study; give it as `{_OF_THE_CELL[given]}` in its file"
                )


def shipped_studies() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_study(
    name: str,
    *,
    data: Sequence[Path] = (),
    evaluate: Sequence[Path] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Study:
    """Read a study's file, or a shipped one by its name.

    Args:
        name: a path, or a shipped name.
        data, evaluate: stores instead of the file's.
        overrides: recipe fields of all cells, over those of the file, also over those of its methods and sizes.

    Raises:
        UserError: names the key, what is wrong, and the mend.
    """
    refuse_cell_fields("--", overrides or {})
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"{name}: no such study; shipped: {', '.join(shipped_studies())}, or give a .yaml file")
    try:
        given = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: is no YAML ({' '.join(str(error).split())}); mend it") from None
    if not isinstance(given, dict):
        raise UserError(f"{path}: holds no keys; see `maskedclip study --help` for an example")
    return _Reader(path, given).study(data, evaluate, overrides or {})


class _Reader(KeyedReader):
    """One file, key by key."""

    def study(self, data: Sequence[Path], evaluate: Sequence[Path], overrides: Mapping[str, Any]) -> Study:
        known = {"about", "data", "evaluate", "config", "set", "methods", "sizes", "grid", "steps", "equal_time"}
        known |= {"reference", "chain", "protocols", "split", "precision", "replicates", "slurm"}
        self.only(known, self.given, "")
        stores = [Path(store) for store in data] or self._stores("data")
        if not stores:
            raise self.fail("data", "no store is named; give --data STORE")
        methods = self._choices("methods")
        sizes = self._choices("sizes") if "sizes" in self.given else {}
        config = self._recipes("config", self.given.get("config", [] if sizes else ["vitb16"]))
        sizes = sizes or {DEFAULT_SIZE: Choice(config=config)}
        study = Study(
            name=self.path.stem,
            about=" ".join(str(self.given.get("about", "")).split()),
            data=tuple(stores),
            evaluate=tuple([Path(store) for store in evaluate] or self._stores("evaluate") or stores[:1]),
            methods=methods,
            sizes=sizes,
            fields={**self._fields("set", self.given.get("set", {})), **overrides},
            overrides=dict(overrides),
            grid=self._grid(methods, sizes),
            steps=self.count("steps", None),
            equal_time=self._method("equal_time", methods) if self.given.get("equal_time") else None,
            reference=self._method("reference", methods),
            chain=tuple(self.listed("chain", self.given.get("chain", []), list(methods))),
            protocols=tuple(
                self.listed("protocols", self.given.get("protocols", Study.protocols), list(PROTOCOLS), "a protocol")
            ),
            split=str(self.given.get("split", "test")),
            precision=str(self.given.get("precision", "32-true")),
            replicates=self.count("replicates", 1000, least=2),
            slurm=self._slurm(),
        )
        if not study.protocols:
            raise self.fail("protocols", f"none is given; choose from {', '.join(PROTOCOLS)}")
        if study.split not in ("test", "development"):
            raise self.fail("split", f"{study.split!r} is neither test nor development")
        if study.precision not in ("32-true", "bf16-mixed"):
            raise self.fail("precision", f"{study.precision!r} is neither 32-true nor bf16-mixed")
        for method, size, fraction, seed in study.combinations:
            study.recipe(method, size, fraction, seed, study.steps)
        lacking = {size for _, size, _, _ in study.combinations} - {
            size for method, size, _, _ in study.combinations if method == study.equal_time
        }
        if study.equal_time and lacking:
            raise self.fail(
                "equal_time",
                f"{study.equal_time!r} gives the others their time, but the grid lacks it at size "
                f"{', '.join(sorted(lacking))}; add it there, or name another method",
            )
        return study

    def _stores(self, key: str) -> list[Path]:
        return [self.path.parent / Path(store).expanduser() for store in self.names(key, self.given.get(key, []))]

    def _choices(self, key: str) -> dict[str, Choice]:
        entries = self.mapping(key, self.given.get(key))
        if not entries:
            raise self.fail(key, "none is given; e.g. methods: {clip: clip, maskedclip: maskedclip}")
        choices = {}
        for name, value in entries.items():
            where = f"{key}.{name}"
            if isinstance(value, dict):
                self.only({"config", "set"}, value, f"{where}.")
                fields = self._fields(f"{where}.set", value.get("set", {}))
                choices[str(name)] = Choice(config=self._recipes(where, value.get("config", [])), fields=fields)
            else:
                choices[str(name)] = Choice(config=self._recipes(where, value))
            if not str(name).replace("_", "").replace(".", "").isalnum():
                raise self.fail(where, "give a name of letters, digits, dots and underscores")
        return choices

    def _grid(self, methods: Mapping[str, Choice], sizes: Mapping[str, Choice]) -> tuple[Block, ...]:
        blocks = self.given.get("grid")
        if not isinstance(blocks, list) or not blocks:
            raise self.fail(
                "grid", "give a list, e.g. - {methods: [clip, maskedclip], text_fractions: [0.25], seeds: [0]}"
            )
        found = []
        for place, block in enumerate(blocks):
            where = f"grid[{place}]"
            block = self.mapping(where, block)
            self.only({"methods", "text_fractions", "seeds", "sizes"}, block, f"{where}.")
            fractions = self.numbers(f"{where}.text_fractions", block.get("text_fractions", [1.0]))
            seeds = self.numbers(f"{where}.seeds", block.get("seeds", [0]))
            if not all(isinstance(seed, int) for seed in seeds):
                raise self.fail(f"{where}.seeds", f"{seeds}; give whole numbers, e.g. [0, 1, 2]")
            named = self.listed(f"{where}.methods", block.get("methods", []), list(methods))
            found.append(
                Block(
                    methods=self.once(f"{where}.methods", named),
                    sizes=self.once(
                        f"{where}.sizes",
                        self.listed(f"{where}.sizes", block.get("sizes", list(sizes)), list(sizes)),
                    ),
                    text_fractions=self.once(f"{where}.text_fractions", [float(value) for value in fractions]),
                    seeds=self.once(f"{where}.seeds", [int(value) for value in seeds]),
                )
            )
        return tuple(found)

    def _slurm(self) -> dict[str, str | bool | None]:
        options = self.mapping("slurm", self.given.get("slurm", {}))
        for name, value in options.items():
            if not isinstance(value, str | bool | None) or "\n" in str(value):
                raise self.fail(
                    f"slurm.{name}", f"{value!r}; give one text, e.g. gres: gpu:1, or true for a bare option"
                )
        return {str(name): value for name, value in options.items()}

    def _recipes(self, key: str, value: Any) -> tuple[str, ...]:
        return tuple(self._recipe(name) for name in self.names(key, value))

    def _recipe(self, name: str) -> str:
        """A recipe's file beside this one, else what is found from the working directory; shipped names stay theirs."""
        beside = self.path.parent / Path(name).expanduser()
        return str(beside) if name not in shipped_recipes() and beside.is_file() else name

    def _fields(self, key: str, given: Any) -> dict[str, Any]:
        fields = {str(name): value for name, value in self.mapping(key, given).items()}
        refuse_cell_fields(f"{self.path}: {key}: ", fields)
        for name in PATHS:
            section, _, inner = name.partition(".")
            for holder, place in ((fields, name), (fields.get(section), inner)):
                if not isinstance(holder, dict):
                    continue
                value = holder.get(place)
                if isinstance(value, str) and self._stands_beside(value):
                    holder[place] = str(self.path.parent / value)
        return fields

    def _stands_beside(self, value: str) -> bool:
        """Whether a path is one beside the file; what a cell fills in is not known here, so one that fits has to do."""
        if _PLACEHOLDER.search(value) is None or Path(value).is_absolute():
            return (self.path.parent / value).exists()
        return any(self.path.parent.glob(_PLACEHOLDER.sub("*", value)))

    def _method(self, key: str, methods: Mapping[str, Choice]) -> str:
        default = "clip" if "clip" in methods else next(iter(methods))
        return self.listed(key, [self.given.get(key, default)], list(methods))[0]
