"""The recipe: one typed tree behind every YAML file, every command-line flag and every run directory."""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from maskedclip.errors import UserError
from maskedclip.recipe_objective import ObjectiveRecipe
from maskedclip.recipe_sections import DataRecipe, ModelRecipe, TrainingRecipe, require

SHIPPED = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A seed and four sections; all that decides what a run does."""

    seed: int = 0
    """Decides the initial weights and, with step and sample, all that a step sees."""
    data: DataRecipe = field(default_factory=DataRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    objective: ObjectiveRecipe = field(default_factory=ObjectiveRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)

    def __post_init__(self) -> None:
        """Reject contradictions between sections, naming the mend."""
        require(
            self.model.projection_norm == "none"
            or (self.objective.mkd_target == "bridge" and self.objective.mkd_loss != "prototype_kl"),
            "model.projection_norm: `batch` has no meaning for single patches; use objective.mkd_target bridge "
            "and a loss other than prototype_kl",
        )
        require(0 <= self.seed < 2**62, f"seed: {self.seed} is outside 0 .. 2^62 - 1")
        require(
            self.data.pool != "all" or not self.objective.reads_text,
            f"data.pool: `all` reads no texts, which {self._text_reader} needs; leave it out, or pool "
            "paired_and_unpaired",
        )
        objective = self.objective
        require(
            objective.shares_space or not objective.masks or not objective.chosen_masking.reads_text,
            f"objective.masking: {objective.masking} compares patches with texts, whose shared space no loss trains; "
            "raise objective.clip_weight, add a term that does (siglip, xclip), or take another masking",
        )
        require(
            self.data.texts is None or any(term.reads_loose for term in self.objective.term_options.values()),
            "data.texts: no loss of this recipe reads texts without images; add mlm, entity_mlm or causal to "
            "objective.terms, or leave data.texts out",
        )
        require(
            self.data.images_per_document == 1
            or any(term.reads_documents for term in self.objective.term_options.values()),
            "data.images_per_document: no loss of this recipe reads several images together; add lcl to "
            "objective.terms, or give 1",
        )

        require(
            self.data.pairs is None or self.objective.reads_pairs,
            "data.pairs: no loss of this recipe reads retrieved texts; leave it out, or take what does: --config "
            "clipit_style, objective.masking text_guided with `unpaired: retrieved`, or terms.xclip.retrieved",
        )

    @property
    def reads_text(self) -> bool:
        """Whether the recipe trains on texts."""
        return self.objective.reads_text

    @property
    def _text_reader(self) -> str:
        """The field that asks for texts."""
        objective = self.objective
        if objective.clip_weight > 0:
            return "objective.clip_weight"
        names = [name for name, options in objective.term_options.items() if options.reads_text]
        return f"objective.terms.{names[0]}" if names else f"objective.masking {objective.masking}"

    @property
    def masks(self) -> bool:
        """Whether the recipe has a masked pass."""
        return self.objective.masks

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """Paired and unpaired images a step, all ranks together."""
        if self.data.pool == "paired":
            return self.data.batch_paired, 0
        if self.data.pool == "all":
            return 0, self.data.batch_paired + self.data.batch_unpaired
        return self.data.batch_paired, self.data.batch_unpaired

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dictionaries, lists and numbers."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def replace(self, **sections: Mapping[str, Any]) -> "Recipe":
        """Return a recipe with some fields changed: `replace(training={"steps": 10})`."""
        return dataclasses.replace(
            self,
            **{name: dataclasses.replace(getattr(self, name), **dict(values)) for name, values in sections.items()},
        )


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a recipe, given its path or the name of a shipped one, which a file of that name does not replace.

    Raises:
        UserError: no such file, no such name.
    """
    if Path(name).suffix in {".yaml", ".yml"} or (name not in shipped_recipes() and Path(name).is_file()):
        require(Path(name).is_file(), f"--config {name}: no such file; shipped recipes: {', '.join(shipped_recipes())}")
        return Path(name)
    path = SHIPPED / f"{name}.yaml"
    near = difflib.get_close_matches(name, shipped_recipes(), 1)
    meant = f"did you mean {near[0]}? " if near else ""
    require(
        path.is_file(),
        f"--config {name}: no such recipe; {meant}shipped: {', '.join(shipped_recipes())}, or give a file",
    )
    return path


@cache
def recipe_parser() -> Any:
    """The jsonargparse parser whose options are the recipe's fields; a study reads hundreds of recipes with it."""
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog="maskedclip pretrain", exit_on_error=False, add_help=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="recipe file or shipped name; several may be stacked")
    parser.add_class_arguments(Recipe, as_group=True)
    return parser


def load_recipe(configs: Sequence[str] = (), overrides: Sequence[str] = ()) -> Recipe:
    """Stack recipes in their order, then command-line overrides such as `["--data.size", "112"]`.

    Raises:
        UserError: unknown file, unknown key, a value of the wrong type, a contradiction.
    """
    paths = [recipe_path(name) for name in configs]
    for path in paths:  # each alone first, so that a fault is told with its file
        _parse([f"--config={path}"], f"--config {path.name}: ")
    values = _parse([*(f"--config={path}" for path in paths), *overrides]).as_dict()
    values.pop("config", None)
    values["objective"]["terms"] = _merged_terms(paths, values["objective"]["terms"])
    return recipe_from_dict(values)


def _merged_terms(paths: Sequence[Path], last: Mapping[str, Any]) -> dict[str, Any]:
    """The further losses of all stacked recipes: a later one adds some and changes options, weight 0 takes one out."""
    merged: dict[str, Any] = {}
    for terms in (*(_terms_of(path) for path in paths), last):
        for name, options in terms.items():
            before: Any = merged.get(name)
            if isinstance(before, dict) and isinstance(options, Mapping):
                merged[name] = before | dict(options)
            else:
                merged[name] = options
    return merged


def _terms_of(path: Path) -> Mapping[str, Any]:
    import yaml

    values = yaml.safe_load(path.read_text())
    objective = values.get("objective") if isinstance(values, dict) else None
    terms = objective.get("terms") if isinstance(objective, dict) else None
    return terms if isinstance(terms, dict) else {}


def _parse(arguments: Sequence[str], where: str = "") -> Any:
    import jsonargparse

    try:
        return recipe_parser().parse_args(list(arguments))
    except (jsonargparse.ArgumentError, SystemExit) as error:
        message = re.sub(r"Parser key \"(.+?)\": ", r"\1: ", _one_line(error))
        raise UserError(where + message + _near(message)) from None


def _near(message: str) -> str:
    """The field that an unknown name may have meant."""
    unknown = re.search(r"unrecognized arguments: --([\w.]+)|Group '(\w+)' does not accept option '(\w+)'", message)
    if unknown is None:
        return ""
    name = unknown.group(1) or f"{unknown.group(2)}.{unknown.group(3)}"
    known = [
        f"{section}.{key}" for section, fields in Recipe().to_dict().items() if section != "seed" for key in fields
    ]
    near = difflib.get_close_matches(name, [*known, "seed"], 1)
    return f"; did you mean {near[0]}?" if near else "; `maskedclip pretrain --help` lists all fields"


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """The typed recipe of plain dictionaries, as a run's recipe.yaml holds them.

    Raises:
        UserError: unknown key or contradiction.
    """
    sections: dict[str, Any] = {}
    for name, kind in (
        ("data", DataRecipe),
        ("model", ModelRecipe),
        ("objective", ObjectiveRecipe),
        ("training", TrainingRecipe),
    ):
        given: dict[str, Any] = dict(values.get(name, {}))
        known = {entry.name: entry for entry in dataclasses.fields(kind)}
        unknown = sorted(set(given) - set(known))
        require(not unknown, f"{name}.{', '.join(unknown)}: no such field; known: {', '.join(known)}")
        typed: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
        sections[name] = kind(**typed)
    return Recipe(seed=int(values.get("seed", 0)), **sections)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:600] or "the recipe cannot be read"
