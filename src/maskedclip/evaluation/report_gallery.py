"""The parts of a report that show a model at work on images: reconstructions, feature maps, retrieval examples."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from maskedclip import randomness
from maskedclip.data.text import normalise_text
from maskedclip.evaluation.feature_cache import CachedFeatures
from maskedclip.evaluation.knn import unit_rows
from maskedclip.evaluation.report_pictures import (
    feature_maps,
    jpeg,
    map_png,
    patches_in_field,
    photograph,
    reconstruct,
    stored_pixels,
    varied_rows,
)
from maskedclip.evaluation.report_subject import Subject
from maskedclip.evaluation.retrieval import TIE, distinct
from maskedclip.html import LeftOut, escape, grid, paragraph, picture, shorten
from maskedclip.models.saving import read_decoders
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective

_MAPS = 6
_QUERIES, _TEXT_QUERIES = 6, 4
_NEAREST_TEXTS, _NEAREST_IMAGES = 3, 4
_MOST_CANDIDATES = 2048


def reconstructions(subject: Subject) -> str:
    """Original, masked and repainted images side by side.

    Raises:
        LeftOut: the recipe trains no image decoder, or its weights are not there.
    """
    objective = trained_objective(subject)
    rows = subject.examples
    image = stored_pixels(subject.images, rows, subject.model.preprocessing.size).to(subject.model.device)
    keys = torch.from_numpy(randomness.sample_keys(subject.seed, 0, rows)).to(subject.model.device)
    shown = reconstruct(objective, image, keys)
    items = []
    for place, row in enumerate(rows.tolist()):
        columns = (("original", shown.original), ("masked", shown.masked), ("reconstructed", shown.painted))
        cells = [_cell(jpeg(pixels[place]), "jpeg", name, f"Image {place + 1}, {name}") for name, pixels in columns]
        items.append(_example(cells, subject.images.text(row)))
    ratio, hidden = objective.mask_ratio, int(shown.hidden[0].sum())
    caption = (
        f"Images of the {subject.shown_split_name}, not trained on. Middle: what the encoder saw, with {hidden} of "
        f"{shown.hidden.shape[1]} patches ({ratio:.0%}) hidden. Right: hidden patches as the image decoder paints "
        "them; visible patches are pasted from the original."
    )
    if subject.shown_split == "train":
        caption = caption.replace(", not trained on", "")
    if subject.recipe.objective.normalise_pixels:
        caption += (
            " The decoder predicts pixels normalised within each patch, so each hidden patch is painted with the mean "
            "and contrast of the original patch: its colour and brightness are given, only its structure is predicted."
        )
    return paragraph(caption) + grid(items, "examples")


def trained_objective(subject: Subject) -> PretrainingObjective:
    """The run's objective with its trained model and decoders, in evaluation mode.

    Raises:
        LeftOut: it has no trained image decoder.
    """
    if subject.recipe.objective.mim_weight == 0:
        raise LeftOut(
            "the recipe has no masked image modelling (objective.mim_weight 0), so no decoder that could paint"
        )
    if subject.recipe.objective.mask_ratio == 0:
        raise LeftOut("the recipe hides no patches (objective.mask_ratio 0)")
    _ = subject.images
    objective = build_objective(subject.recipe, subject.model.module)
    decoders = read_decoders(subject.run.model)
    if not decoders:
        raise LeftOut("model/decoders.safetensors is missing, so nothing can paint; copy the whole run directory")
    try:
        objective.terms.load_state_dict(decoders)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise LeftOut(
            f"model/decoders.safetensors does not belong to this recipe ({first}); copy the run again"
        ) from None
    return objective.to(subject.model.device).eval()


def maps(subject: Subject) -> str:
    """Patch features of f and g(f) as colours beside the photograph.

    Raises:
        LeftOut: there are no images.
    """
    store, model = subject.images, subject.model
    rows = subject.examples[:_MAPS]
    image = stored_pixels(store, rows, model.preprocessing.size)
    encoder = model.module.encoder
    seen = patches_in_field(image, encoder.patch_size)
    drawn = {name: feature_maps(value, encoder.grid, seen) for name, value in model.patch_features(image).items()}
    side = min(256, 4 * image.shape[-1])
    items = []
    for place, row in enumerate(rows.tolist()):
        cells = [
            _cell(jpeg(image[place].permute(1, 2, 0).numpy()), "jpeg", "photograph", f"Image {place + 1}, photograph")
        ]
        for name, result in drawn.items():
            shown = {"encoder": "f", "bridge": "g(f)"}[name]
            alt = f"Image {place + 1}, patch features of {shown} as colours"
            cells.append(_cell(map_png(result.colours[place], side), "png", shown, alt))
        items.append(_example(cells, store.text(row)))
    held = " and ".join(
        f"{result.explained:.0%} of the variance of {'f' if name == 'encoder' else 'g(f)'}"
        for name, result in drawn.items()
    )
    caption = (
        f"Images of the {subject.shown_split_name}. Each square is a patch; its colour is the first three principal "
        f"components of its features as red, green and blue ({held}), fitted over the images shown together. Within "
        "a column equal colours mean similar features; between the columns colours cannot be compared. Patches outside "
        "the photograph's field are dark and left out of the fit."
    )
    notes = ""
    if "bridge" not in drawn:
        notes = paragraph("No map of g(f): the recipe was trained without texts, so there is no bridge.", "note")
    elif model.module.config.bridge_depth == 0:
        notes = paragraph("The recipe has no bridge (depth 0), so g(f) is f and both maps are the same.", "note")
    return paragraph(caption) + notes + grid(items, "examples")


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Images with text, and their distinct texts.

    rows: in the store, (m,).  texts: as written, one for each of T keys.  own: of each image, (m,).
    similarity: cosines, (m, T).
    """

    rows: NDArray[np.int64]
    texts: list[str]
    own: NDArray[np.int64]
    similarity: NDArray[np.float64]


def read_candidates(subject: Subject) -> Candidates:
    """Embed the images with text of the shown split and their distinct texts, as evaluation does.

    Raises:
        LeftOut: the model reads no texts, or there are fewer than two distinct ones.
    """
    store, model = subject.images, subject.model
    if not model.has_text:
        raise LeftOut("the model was trained without texts, so it cannot compare images with them")
    rows = [row for row in store.rows(subject.shown_split).tolist() if normalise_text(store.text(row) or "")]
    if len(rows) > _MOST_CANDIDATES:
        order = randomness.order(np.asarray([store.ids[row] for row in rows], str), subject.seed)
        rows = sorted(rows[place] for place in order[:_MOST_CANDIDATES].tolist())
    written = [store.text(row) or "" for row in rows]
    keys, own = distinct([normalise_text(text) for text in written])
    if len(keys) < 2:
        raise LeftOut(f"the {subject.shown_split} split has {len(keys)} distinct texts; retrieval needs two")
    first = {int(key): text for key, text in reversed(list(zip(own, written, strict=True)))}
    texts = [first[key] for key in range(len(keys))]
    places = np.asarray(rows, np.int64)
    images = unit_rows(CachedFeatures(model, store).features(store, places)["projected"]).astype(np.float64)
    similarity = images @ unit_rows(model.encode_text(texts)).astype(np.float64).T
    return Candidates(rows=places, texts=texts, own=own, similarity=similarity)


def retrieval_examples(subject: Subject) -> str:
    """For some images the nearest texts, and for some texts the nearest images, with what is right.

    Raises:
        LeftOut, UserError: as `read_candidates`.
    """
    found = read_candidates(subject)
    whole = len(found.rows) < _MOST_CANDIDATES
    caption = (
        f"Among {len(found.rows):,} images with text of the {subject.shown_split_name}"
        f"{'' if whole else ' (a random part of it)'} and their {len(found.texts):,} distinct texts; the number is the "
        "cosine of image and text. Right means the image's own text; a text marked as another may still describe the "
        "image well, since many reports say the same in other words. Examples are drawn by a seed, not picked."
    )
    chosen = varied_rows(subject.images, found.rows, _QUERIES, subject.seed).tolist()
    places = [int(np.flatnonzero(found.rows == row)[0]) for row in chosen]
    queries = sorted(range(len(found.texts)), key=lambda key: randomness.text_key(f"{subject.seed} {found.texts[key]}"))
    frequent = int(np.bincount(found.own).argmax())
    texts = [frequent, *(key for key in queries if key != frequent)][:_TEXT_QUERIES]
    return (
        paragraph(caption)
        + "<h3>Image → text</h3>"
        + grid([_nearest_texts(subject, found, place) for place in places], "queries")
        + "<h3>Text → image</h3>"
        + grid([_nearest_images(subject, found, key) for key in texts], "textqueries")
    )


def _nearest_texts(subject: Subject, found: Candidates, place: int) -> str:
    cosines, own = found.similarity[place], int(found.own[place])
    order = np.argsort(-cosines, kind="stable")
    nearest = order[:_NEAREST_TEXTS].tolist()
    lines = "".join(
        f'<li>{_mark(key == own)} <span class="cosine">{cosines[key]:.2f}</span> '
        f"{escape(shorten(found.texts[key]))}</li>"
        for key in nearest
    )
    rank = int((cosines >= cosines[own] - TIE).sum())
    below = (
        ""
        if own in nearest
        else f'<p class="note">Its own text comes {rank} of {len(cosines)} ({cosines[own]:.2f}).</p>'
    )
    own_picture = _photograph(
        subject, int(found.rows[place]), f"Photograph whose text is: {shorten(found.texts[own], 120)}"
    )
    return (
        f'<article class="query">{own_picture}<div><p class="own"><strong>Own text:</strong> '
        f"{escape(shorten(found.texts[own]))}</p><ol>{lines}</ol>{below}</div></article>"
    )


def _nearest_images(subject: Subject, found: Candidates, key: int) -> str:
    cosines = found.similarity[:, key]
    cells = []
    for place in np.argsort(-cosines, kind="stable")[:_NEAREST_IMAGES].tolist():
        right, text = found.own[place] == key, found.texts[int(found.own[place])]
        shown = _photograph(subject, int(found.rows[place]), f"Photograph whose text is: {shorten(text, 120)}")
        own = "" if right else f'<p class="note">its text: {escape(shorten(text, 120))}</p>'
        cells.append(f'<div class="hit">{shown}<p>{_mark(bool(right))} {cosines[place]:.2f}</p>{own}</div>')
    count = int((found.own == key).sum())
    has = "1 image has it" if count == 1 else f"{count:,} images have it"
    return (
        f'<article class="textquery"><p class="own">“{escape(shorten(found.texts[key]))}” <small>({has})</small></p>'
        f"{grid(cells, 'hits')}</article>"
    )


def _mark(right: bool) -> str:
    return '<span class="right">✓ right</span>' if right else '<span class="wrong">✗ another</span>'


def _photograph(subject: Subject, row: int, alt: str) -> str:
    return picture(photograph(subject.images, row), "jpeg", alt)


def _cell(data: bytes, kind: str, name: str, alt: str) -> str:
    return f'<div class="cell">{picture(data, kind, alt)}<span>{escape(name)}</span></div>'


def _example(cells: list[str], text: str | None) -> str:
    said = escape(shorten(text, 160)) if text else "no text"
    return f'<figure class="example"><div class="strip">{"".join(cells)}</div><figcaption>{said}</figcaption></figure>'
