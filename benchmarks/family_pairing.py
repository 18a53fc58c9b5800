"""Pairing by retrieval where the truth is known (docs/pairing.md, docs/family/clipit_style.md).

    python benchmarks/family_pairing.py RUN STORE [--texts FILE.csv ...] [--out FILE.json]

The images are those whose text the run's training dropped (seen.parquet), so their labels tell whether a retrieved text
fits.  A text has the labels of the images that have it in the store; one from elsewhere those that `KEYWORDS` finds.
Shares are over images, their intervals a bootstrap over patients; chance is the share if the same texts were dealt out
at random.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

from maskedclip.data.store import Store, open_store
from maskedclip.data.text import normalise_text
from maskedclip.deployment.model import load
from maskedclip.deployment.pair import Images, choose_images, distinct_texts, read_texts, retrieve
from maskedclip.objectives.pairing import Pairing

KEYWORDS = {
    "diabetic_retinopathy": r"diabetic|\bnpdr\b|\bpdr\b|\bbdr\b",
    "glaucoma": r"glaucoma",
    "cataract": r"cataract",
    "amd": r"age[- ]related macular degeneration|\bamd\b|choroidal neovasc|\bcnv\b",
    "hypertensive_retinopathy": r"hypertensive",
    "pathological_myopia": r"myopi",
    "epiretinal_membrane": r"epiretinal",
    "drusen": r"drusen",
    "normal": r"^normal",
}
REPLICATES = 2000


def text_labels(store: Store, texts: list[str], names: list[str]) -> np.ndarray:
    """1, 0, or NaN where a text says nothing that these labels name, (T, C)."""
    owners: dict[str, list[int]] = {}
    for row, text in enumerate(store.texts):
        owners.setdefault(normalise_text(text or ""), []).append(row)
    truth = np.stack([store.labels[name] for name in names], axis=1)
    found = np.full((len(texts), len(names)), np.nan)
    for place, text in enumerate(texts):
        rows = owners.get(normalise_text(text))
        if rows:
            found[place] = np.nanmedian(truth[rows], axis=0)
            continue
        hits = [bool(re.search(KEYWORDS[name], text.lower())) if name in KEYWORDS else False for name in names]
        if any(hits):
            found[place] = np.asarray(hits, float)
    return found


def shares(store: Store, rows: np.ndarray, index: np.ndarray, labels: np.ndarray, names: list[str], seed: int) -> dict:
    """How often image and text have a label in common; for all images and for those with a finding."""
    image = np.stack([store.labels[name][rows] for name in names], axis=1) == 1  # (n, C)
    text = labels == 1  # (T, C)
    given = index >= 0
    common = (image & text[np.maximum(index, 0)]).any(axis=1)
    told = given & ~np.isnan(labels[np.maximum(index, 0)]).all(axis=1)
    abnormal = image[:, [name != "normal" for name in names]].any(axis=1)
    result = {}
    for title, some in (("all", told & image.any(axis=1)), ("with a finding", told & abnormal)):
        patients = store.patients[rows[some]]
        _, codes = np.unique(patients.astype(str), return_inverse=True)
        hits = np.bincount(codes, weights=common[some])
        counts = np.bincount(codes)
        random = np.random.default_rng(seed)
        weight = random.multinomial(len(hits), np.full(len(hits), 1 / len(hits)), REPLICATES)
        draws = (weight @ hits) / (weight @ counts)
        dealt = np.bincount(index[some], minlength=len(text)) / some.sum()
        chance = float(((image[some].astype(float) @ text.T.astype(float) > 0) @ dealt).mean())
        result[title] = {
            "n": int(some.sum()),
            "patients": len(hits),
            "share": float(common[some].mean()),
            "low": float(np.quantile(draws, 0.025)),
            "high": float(np.quantile(draws, 0.975)),
            "chance": chance,
        }
    return result | {"without label": int((given & ~told).sum())}


def main() -> None:
    """Print one block for each source of texts and each option."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--texts", type=Path, nargs="*", default=[])
    parser.add_argument("--split", default="train")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    store, model = open_store(args.store), load(args.run)
    names = [name for name, values in store.labels.items() if values.dtype != object]
    images: Images = choose_images(store, args.split, "unpaired", args.run)
    sources = {"kept texts of the store": distinct_texts([store.texts[row] for row in images.with_text.tolist()])}
    sources |= {path.name: read_texts(path, "text") for path in args.texts}
    results = {}
    for source, texts in sources.items():
        labels = text_labels(store, texts, names)
        for name, pairing in (
            ("top 1", Pairing()),
            ("mutual, top 10", Pairing(top=10, mutual=True)),
        ):
            found = retrieve(model, store, images, texts, pairing)
            index, score = found.found.index[:, 0], found.found.score[:, 0]
            entry = {
                "texts": len(texts),
                "texts with a label": int((~np.isnan(labels).all(axis=1)).sum()),
                "images": len(found.rows),
                "paired": found.found.found,
                "score": [float(value) for value in np.quantile(score[index >= 0], (0, 0.5, 1))],
                "hubness": found.report.to_json(),
                "shares a label": shares(store, found.rows, index, labels, names, 0),
            }
            results[f"{source}, {name}"] = entry
            if name == "top 1":
                surest = np.where(score >= np.quantile(score, 0.75), index, -1)
                entry["surest quarter"] = shares(store, found.rows, surest, labels, names, 0)
    print(json.dumps(results, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
