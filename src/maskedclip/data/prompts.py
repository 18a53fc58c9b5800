"""Labels as sentences: the prompt ensembles of zero-shot classification.

A label's name, its synonyms and expert descriptions of what it looks like, in the words that fundus reports use,
written for this project from general ophthalmic knowledge.  A label that isn't listed still gets its own name in
every template.  A user's file of prompts replaces the ensemble of the labels it names (`load_prompts`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maskedclip.errors import UserError

Overrides = Mapping[str, Sequence[str]]

NORMAL = "normal"
# Names of a finding go into each of these; descriptions stand alone, as sentences of a report do.
TEMPLATES = ("{}", "fundus photograph with {}", "signs of {}", "there is {}", "findings consistent with {}")


@dataclass(frozen=True, kw_only=True)
class _Entry:
    names: tuple[str, ...]
    descriptions: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()  # other ways to name the label; not shown to the model


_ENTRIES = (
    _Entry(
        names=(),
        descriptions=(
            "normal fundus",
            "normal retina",
            "healthy fundus",
            "no abnormality",
            "no abnormality detected",
            "unremarkable fundus",
            "no retinopathy",
            "fundus photograph of a healthy eye",
            "normal optic disc, macula and vessels",
            "clear media, healthy disc and macula, no lesions",
        ),
        aliases=(NORMAL, "normal fundus", "normal retina", "healthy", "healthy fundus", "no finding", "no findings"),
    ),
    _Entry(
        names=("diabetic retinopathy",),
        descriptions=(
            "mild non proliferative retinopathy",
            "moderate non proliferative retinopathy",
            "severe non proliferative retinopathy",
            "non proliferative diabetic retinopathy",
            "proliferative diabetic retinopathy",
            "microaneurysms and haemorrhages",
            "microaneurysms, retinal hemorrhages and hard exudates",
            "scattered dot and blot haemorrhages with hard exudates and cotton wool spots",
        ),
        aliases=("dr", "retinopathy", "diabetic retinopathy (dr)"),
    ),
    _Entry(
        names=("glaucoma", "suspected glaucoma", "glaucomatous optic neuropathy"),
        descriptions=(
            "large cup to disc ratio",
            "enlarged optic cup",
            "increased cup-to-disc ratio with thinning of the neuroretinal rim",
            "optic disc cupping",
        ),
        aliases=("glaucoma suspect",),
    ),
    _Entry(
        names=("cataract", "refractive media opacity", "lens opacity"),
        descriptions=(
            "hazy media",
            "media opacity, the fundus is blurred",
            "hazy view of the fundus due to lens opacity",
            "cloudy, reddish view with vessels barely visible",
        ),
        aliases=("media opacity", "media haze"),
    ),
    _Entry(
        names=("age-related macular degeneration", "macular degeneration"),
        descriptions=(
            "dry age-related macular degeneration",
            "wet age-related macular degeneration",
            "drusen and pigment changes in the macula",
            "many drusen in the macula",
            "geographic atrophy of the macula",
            "choroidal neovascularisation with subretinal fluid or blood",
        ),
        aliases=("amd", "armd", "age related macular degeneration"),
    ),
    _Entry(
        names=("hypertensive retinopathy",),
        descriptions=(
            "arteriolar narrowing and arteriovenous nicking",
            "narrowed arteries, arteriovenous crossing changes",
            "attenuated arterioles with flame-shaped haemorrhages and cotton wool spots",
            "copper wiring of the arterioles",
        ),
        aliases=("hypertension", "hr"),
    ),
    _Entry(
        names=("pathological myopia", "high myopia", "myopic retinopathy"),
        descriptions=(
            "myopic crescent",
            "tessellated fundus with peripapillary atrophy",
            "tilted disc with a temporal crescent",
            "large peripapillary atrophy, choroidal vessels are visible",
            "chorioretinal atrophy in a myopic eye",
        ),
        aliases=("myopia", "degenerative myopia", "pm"),
    ),
    _Entry(
        names=("epiretinal membrane", "macular epiretinal membrane", "macular pucker"),
        descriptions=(
            "glistening membrane on the macula with retinal folds",
            "wrinkling of the macular surface, cellophane reflex",
            "distorted vessels around the macula",
        ),
        aliases=("erm",),
    ),
    _Entry(
        names=("drusen", "macular drusen"),
        descriptions=(
            "small yellow deposits in the macula",
            "scattered drusen at the posterior pole",
            "soft drusen",
            "hard drusen",
        ),
    ),
    _Entry(
        names=("retinal haemorrhage", "retinal hemorrhage", "haemorrhages", "hemorrhages"),
        descriptions=("dot and blot haemorrhages", "flame-shaped hemorrhage", "scattered intraretinal haemorrhages"),
        aliases=("haemorrhage", "hemorrhage", "bleeding"),
    ),
    _Entry(
        names=("hard exudates", "hard exudate"),
        descriptions=("yellow lipid exudates", "bright exudates near the macula", "circinate hard exudates"),
        aliases=("exudate", "exudates"),
    ),
    _Entry(
        names=("cotton wool spots", "cotton-wool spots", "soft exudates"),
        descriptions=("fluffy white patches in the retina", "white spots with blurred margins"),
        aliases=("cotton wool spot", "soft exudate", "cws"),
    ),
    _Entry(
        names=("microaneurysms", "microaneurysm"),
        descriptions=("small red dots", "a few microaneurysms at the posterior pole"),
    ),
    _Entry(
        names=("laser scars", "laser spots", "laser spot", "post laser photocoagulation"),
        descriptions=("panretinal photocoagulation scars", "regular pattern of round, pigmented laser burns"),
        aliases=("laser scar", "laser"),
    ),
    _Entry(
        names=("retinal vein occlusion", "branch retinal vein occlusion", "central retinal vein occlusion"),
        descriptions=(
            "flame-shaped haemorrhages in one sector",
            "dilated, tortuous veins with many haemorrhages",
        ),
        aliases=("rvo", "vein occlusion"),
    ),
    _Entry(
        names=("macular edema", "macular oedema", "diabetic macular edema"),
        descriptions=("thickened macula with hard exudates near the fovea",),
        aliases=("dme", "edema", "oedema", "diabetic macular oedema"),
    ),
    _Entry(
        names=("retinal detachment",),
        descriptions=("elevated, grey, folded retina", "rhegmatogenous retinal detachment"),
    ),
    _Entry(
        names=("papilledema", "optic disc swelling", "optic disc edema"),
        descriptions=("swollen optic disc with blurred margins",),
        aliases=("papilloedema", "disc swelling"),
    ),
    _Entry(
        names=("optic atrophy", "pale optic disc"),
        descriptions=("pallor of the optic disc",),
        aliases=("disc pallor",),
    ),
    _Entry(
        names=("myelinated nerve fibers", "myelinated nerve fibres"),
        descriptions=("white feathery patch at the disc margin",),
    ),
    _Entry(
        names=("macular hole",),
        descriptions=("round, sharply bordered defect at the fovea",),
    ),
)

# What each grade of an ordinal label is called in reports (International Clinical Diabetic Retinopathy scale).
_RETINOPATHY_GRADES = {
    0: ("normal fundus", "no diabetic retinopathy", "no retinopathy", "no abnormality"),
    1: (
        "mild non proliferative retinopathy",
        "mild nonproliferative diabetic retinopathy",
        "a few microaneurysms only",
    ),
    2: (
        "moderate non proliferative retinopathy",
        "moderate nonproliferative diabetic retinopathy",
        "microaneurysms, scattered haemorrhages and hard exudates",
    ),
    3: (
        "severe non proliferative retinopathy",
        "severe nonproliferative diabetic retinopathy",
        "many haemorrhages in all quadrants with cotton wool spots and venous beading",
    ),
    4: (
        "proliferative diabetic retinopathy",
        "severe proliferative diabetic retinopathy",
        "new vessels, preretinal or vitreous haemorrhage, laser scars",
    ),
}
_GRADES: dict[str, dict[int, tuple[str, ...]]] = dict.fromkeys(
    (
        "dr grade",
        "dr level",
        "dr severity",
        "icdr",
        "icdr grade",
        "retinopathy grade",
        "diabetic retinopathy grade",
        "diabetic retinopathy level",
        "diabetic retinopathy severity",
    ),
    _RETINOPATHY_GRADES,
)


def humanise(label: str) -> str:
    """A label's name as words: "diabetic_retinopathy" and "DiabeticRetinopathy" -> "diabetic retinopathy"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label.strip())
    return " ".join(re.sub(r"[_\s]+", " ", words).split()).lower()


def is_normal(label: str) -> bool:
    """Whether the label says that nothing is wrong ("normal", "healthy", "normal fundus", "no_finding" ...)."""
    return _LOOKUP.get(humanise(label)) is _LOOKUP[NORMAL]


def prompts_for(label: str, overrides: Overrides | None = None) -> list[str]:
    """The sentences that stand for a finding, or for a class named by words; never empty, no sentence twice.

    `overrides`: prompts of the user's, by label; where they name this label, they are all there is.
    """
    if overrides and label in overrides:
        return list(overrides[label])
    entry = _LOOKUP.get(humanise(label)) or _Entry(names=(humanise(label) or label,))
    named = [template.format(name) for name in entry.names for template in TEMPLATES]
    return list(dict.fromkeys([*named, *entry.descriptions]))


def prompts_for_class(label: str, value: str | int, overrides: Overrides | None = None) -> list[str]:
    """The sentences that stand for one class of a label with several: a grade (a number) or a name (words).

    A user's prompts are looked up under "label=value" and, for words, under the value itself.
    """
    key = f"{label}={value}"
    if overrides and key in overrides:
        return list(overrides[key])
    if isinstance(value, str):
        return prompts_for(value, overrides)
    grades = _GRADES.get(humanise(label).replace("-", " "), {})
    if value in grades:
        return list(grades[value])
    name = humanise(label)
    return [f"{name} {value}", f"{name} grade {value}", f"fundus photograph with {name} {value}"]


def load_prompts(path: Path) -> dict[str, list[str]]:
    """A user's prompts: a YAML or JSON file that maps labels to lists of sentences.

    Keys are names of labels; "label=value" or a class's name for one class of a label; "normal" for what findings
    are contrasted with.  UserError where the file can't be read or a part of it is something else.
    """
    content = _parse(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: is not a map of labels to lists of prompts; write e.g. 'glaucoma: [wide cup]'")
    for label, sentences in content.items():
        if not isinstance(label, str):
            raise UserError(f"{path}: the label {label!r} is not text; put it in quotes")
        if not isinstance(sentences, list) or not sentences:
            raise UserError(f"{path}: {label}: needs a list of one or more prompts, e.g. '{label}: [a sentence]'")
        for sentence in sentences:
            if not isinstance(sentence, str) or not sentence.strip():
                raise UserError(f"{path}: {label}: the prompt {sentence!r} is not text; put a sentence in quotes")
    return content


def _parse(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); give a YAML or JSON file of prompts") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; save the prompts as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno} is not JSON ({error.msg}); mend it or write YAML") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1} " if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise UserError(f"{path}: {where}is not YAML ({problem}); write e.g. 'glaucoma: [wide cup]'") from error


_LOOKUP = {key: entry for entry in _ENTRIES for key in (*entry.names, *entry.aliases)}
