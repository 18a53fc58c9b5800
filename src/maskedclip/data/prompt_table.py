"""Labels without text become sentences, through a table (label -> sentences) that the user can edit.

Keys are those of `prompts.load_prompts`: a label's name stands for its value 1, a class's name for that class of any
label, "label=value" for one value of one label.  A label's value 0 says nothing unless the table has "label=0".
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from maskedclip import randomness
from maskedclip.data.manifest_checks import Encoded, as_label
from maskedclip.data.manifest_faults import FaultList
from maskedclip.data.prompts import humanise, prompts_for, prompts_for_class
from maskedclip.data.prompts_grades import GRADES
from maskedclip.data.sources.target import write_new_file

JOIN = "; "  # ends a sentence where reports are split into sentences, too
MOST_GRADES = 32  # a label with more numbers is a measurement, not a grade
_HEADER = """\
# label: sentences that stand for it.  A row whose labels are known gets one sentence of each, chosen by the seed and
# the image's name.  Edit, add or remove sentences; a label that is removed says nothing.  "name=0" may be added.
"""


def prompt_table(table: pa.Table) -> dict[str, list[str]]:
    """The sentences of `maskedclip.data.prompts` for every label of a manifest.

    table: columns `label.NAME`, strings or numbers.  Words give an entry for each class, 0 and 1 one for the label,
    grades one for each value.
    """
    entries: dict[str, list[str]] = {}
    for column in _labels(table):
        for key, _ in column.meanings:
            entries.setdefault(key, column.sentences(key))
    return entries


def write_prompt_table(table: pa.Table, path: Path) -> int:
    """Write `prompt_table` as a new YAML (or .json) file and return the number of its entries; see `load_prompts`."""
    entries = prompt_table(table)
    if path.suffix.lower() == ".json":
        content = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
    else:
        content = _HEADER + yaml.safe_dump(entries, allow_unicode=True, sort_keys=False, width=1000)
    write_new_file(path, content.encode())
    return len(entries)


def texts_from_labels(
    table: pa.Table, prompts: Mapping[str, Sequence[str]] | None = None, *, seed: int = 0
) -> tuple[pa.Array, list[str]]:
    """Texts of a manifest's rows: their own where they have one, else a sentence for each label that says something.

    Which sentence a row gets depends on (seed, its image, the label) alone.

    Args:
        table: columns `image`, `text` (may be missing), `label.NAME`.
        prompts: label -> sentences, and nothing else is said; None for those of `maskedclip.data.prompts`.
        seed: 0 or more.

    Returns: strings, null where nothing is known (n,), and notes on what was made and what was not.
    """
    images = table.column("image").to_pylist()
    given = table.column("text").to_pylist() if "text" in table.column_names else [None] * len(images)
    said: list[list[str]] = [[] for _ in images]
    silent: dict[str, None] = {}
    notes: list[str] = []
    table_of = prompt_table(table) if prompts is None else prompts
    for column in _labels(table, notes):
        keys = [next((key for key in keys if key in table_of), None) for keys in column.alternatives]
        silent |= {
            column.alternatives[code][-1]: None for code, key in enumerate(keys) if key is None and column.speaks[code]
        }
        for row, code in enumerate(column.codes):
            key = keys[code] if code >= 0 else None
            if key is not None and given[row] is None:
                said[row].append(_chosen(table_of[key], seed, images[row], key))
    texts = [own or JOIN.join(dict.fromkeys(new)) or None for own, new in zip(given, said, strict=True)]
    counts = Counter("kept" if own else "made" if text else "none" for own, text in zip(given, texts, strict=True))
    notes.append(
        f"texts from labels: {counts['made']:,} made, {counts['kept']:,} kept, {counts['none']:,} rows without"
    )
    if silent:
        notes.append(f"the prompt table has no entry for {', '.join(silent)}: nothing is said of these")
    return pa.array(texts, pa.string()), notes


def _chosen(sentences: Sequence[str], seed: int, image: str, key: str) -> str:
    return sentences[randomness.text_key(json.dumps([seed, image, key])) % len(sentences)]


class _Label:
    """A label column as codes (n,), -1 for unknown, of few values.

    alternatives: for each value, the keys that may stand for it in a table, in order.  speaks: whether the value says
    something by itself (0 of a yes-no label does not).
    """

    def __init__(self, name: str, values: Sequence[str | int], codes: np.ndarray, *, binary: bool) -> None:
        self.name, self.codes, self._values = name, codes, values
        self.speaks = [not (binary and value == 0) for value in values]
        self.alternatives = [
            [f"{name}={value}", *([value] if isinstance(value, str) else [name] if binary and value == 1 else [])]
            for value in values
        ]

    @property
    def meanings(self) -> list[tuple[str, str | int]]:
        """The key of each value that says something, and the value, in the values' order."""
        found = zip(self.alternatives, self._values, self.speaks, strict=True)
        return sorted(((keys[-1], value) for keys, value, speaks in found if speaks), key=lambda entry: str(entry[0]))

    def sentences(self, key: str) -> list[str]:
        """What `maskedclip.data.prompts` has for a key."""
        value = dict(self.meanings)[key]
        if isinstance(value, str):
            return prompts_for(value)
        return prompts_for(self.name) if key == self.name else prompts_for_class(self.name, value)


def _labels(table: pa.Table, notes: list[str] | None = None) -> list[_Label]:
    """The labels of a manifest that name classes; measurements are noted and left aside."""
    found = []
    for column in table.column_names:
        name = column.removeprefix("label.")
        if column == name:
            continue
        values = as_label(table.column(column), column, np.arange(len(table)), FaultList())  # faults: `read_manifest`
        if pa.types.is_string(values.type):
            coded = Encoded(values)
            found.append(_Label(name, coded.values, coded.codes, binary=False))
            continue
        numbers = np.array(values.to_numpy(), dtype=np.float64)  # NaN where unknown
        distinct = np.unique(numbers[~np.isnan(numbers)])
        if len(distinct) > MOST_GRADES or (distinct != np.floor(distinct)).any():
            if notes is not None:
                notes.append(f"'{column}' is a measurement, not a class: nothing is said of it")
            continue
        grades = humanise(name).replace("-", " ") in GRADES
        binary = not grades and set(distinct.tolist()) <= {0.0, 1.0}
        codes = np.where(np.isnan(numbers), -1, np.searchsorted(distinct, np.nan_to_num(numbers)))
        found.append(_Label(name, [int(value) for value in distinct], codes, binary=binary))
    return found
