"""Labels as sentences: the prompt ensembles of zero-shot classification.

A label's name, its synonyms and expert descriptions of what it looks like, in the words that fundus reports use,
written for this project from general ophthalmic knowledge.  A label that isn't listed still gets its own name in
every template.  A user's file of prompts replaces the ensemble of the labels it names (`load_prompts`).
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from maskedclip.data.prompts_findings import FINDINGS, Entry
from maskedclip.data.prompts_grades import GRADES
from maskedclip.data.prompts_rare import RARE
from maskedclip.errors import UserError

Overrides = Mapping[str, Sequence[str]]

NORMAL = "normal"
# Names of a finding go into each of these; descriptions stand alone, as sentences of a report do.
TEMPLATES = ("{}", "fundus photograph with {}", "signs of {}", "there is {}", "findings consistent with {}")


def humanise(label: str) -> str:
    """A label's name as words: "diabetic_retinopathy" and "DiabeticRetinopathy" -> "diabetic retinopathy"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label.strip())
    return " ".join(re.sub(r"[_\s]+", " ", words).split()).lower()


def is_normal(label: str) -> bool:
    """Whether the label says that nothing is wrong ("normal", "healthy", "normal fundus", "no_finding" ...)."""
    return _LOOKUP.get(humanise(label)) is _LOOKUP[NORMAL]


def unknown_labels(labels: Sequence[str], overrides: Overrides | None = None) -> list[str]:
    """A remark for each label without sentences of its own, here or in `overrides`: perhaps it is misspelt."""
    remarks = []
    for label in labels:
        name = humanise(label)
        if name in _LOOKUP or (overrides and label in overrides):
            continue
        near = difflib.get_close_matches(name, _LOOKUP, 1, 0.75)
        remarks.append(
            f"label {label!r}: no finding that is known here, its words are taken as they are"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    return remarks


def prompts_for(label: str, overrides: Overrides | None = None) -> list[str]:
    """The sentences that stand for a finding, or for a class named by words; never empty, no sentence twice.

    `overrides`: prompts of the user's, by label; where they name this label, they are all there is.
    """
    if overrides and label in overrides:
        return list(overrides[label])
    entry = _LOOKUP.get(humanise(label)) or Entry(names=(humanise(label) or label,))
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
    grades = _grades(label)
    if value in grades:
        return list(grades[value])
    name = humanise(label)
    return [f"{name} {value}", f"{name} grade {value}", f"fundus photograph with {name} {value}"]


def prompts_for_meaning(label: str, value: int, meaning: str) -> list[str]:
    """The sentences that stand for a grade which a task file calls `meaning`; none where the grade is described here.

    The label's name is in one of them, since a meaning may be as short as "mild".
    """
    if value in _grades(label):
        return []
    return list(dict.fromkeys([*prompts_for(meaning), f"{humanise(label)}: {meaning.strip()}"]))


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


def _grades(label: str) -> Mapping[int, Sequence[str]]:
    return GRADES.get(humanise(label).replace("-", " "), {})


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


_LOOKUP = {key.lower(): entry for entry in (*FINDINGS, *RARE) for key in (*entry.names, *entry.aliases)}
