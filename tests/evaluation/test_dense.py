"""The dense probe: its head, its figures, and the whole protocol on stand-ins whose answers are known."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from maskedclip.data.curate import curate
from maskedclip.data.masks import mask_names, read_masks
from maskedclip.data.store import Store, open_store
from maskedclip.errors import UserError
from maskedclip.evaluation.dense import _pixels, dense_probe, dice
from maskedclip.evaluation.dense_head import Pixels, fit_heads
from maskedclip.evaluation.dense_sheet import Shown, dense_sheet
from maskedclip.evaluation.dense_table import image_mean
from maskedclip.evaluation.feature_cache import CachedFeatures
from maskedclip.evaluation.statistics import cluster_weights

SIDE, PATCH = 32, 8


def draw(folder: Path, *, splits: tuple[str, ...] = ("train", "val", "test"), each: int = 4) -> Store:
    """Bright squares on dark ground; mask.spot is where they are, mask.field leaves out the left quarter."""
    generator = np.random.Generator(np.random.Philox(7))
    lines = ["image,patient,split,mask.spot,mask.field"]
    (folder / "files").mkdir(parents=True)
    for number in range(each * len(splits)):
        pixels = generator.integers(0, 60, (SIDE, SIDE, 3)).astype(np.uint8)
        spot = np.zeros((SIDE, SIDE), np.uint8)
        top, left = generator.integers(0, SIDE - 9, 2)
        spot[top : top + 9, left : left + 9] = 255
        pixels[spot > 0] = 220
        field = np.full((SIDE, SIDE), 255, np.uint8)
        field[:, : SIDE // 4] = 0
        for kind, picture in (("image", pixels), ("spot", spot), ("field", field)):
            Image.fromarray(picture).save(folder / "files" / f"{kind}{number}.png")
        split = splits[number % len(splits)]
        names = [f"files/{kind}{number}.png" for kind in ("image", "spot", "field")]
        lines.append(f"{names[0]},p{number // 2 if len(splits) == 1 else number},{split},{names[1]},{names[2]}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    curate(folder / "manifest.csv", folder / "store", size=SIDE, crop="none", encoding="png", progress=False)
    return open_store(folder / "store")


class PixelModel:
    """Patch tokens that are the pixels themselves ("encoder"), and that are the same everywhere ("bridge")."""

    has_text, fingerprint = True, "pixels"

    def __init__(self) -> None:
        self.module = SimpleNamespace(
            encoder=SimpleNamespace(patch_size=PATCH, num_class_tokens=0), config=SimpleNamespace(size=SIDE)
        )

    def at_size(self, size: int, where: str) -> "PixelModel":
        assert size == SIDE
        return self

    def patch_features(self, images: "NDArray") -> dict[str, NDArray]:
        grey = np.asarray(images, np.float32).mean(axis=1)
        count = SIDE // PATCH
        patches = grey.reshape(len(grey), count, PATCH, count, PATCH).transpose(0, 1, 3, 2, 4)
        tokens = patches.reshape(len(grey), count**2, PATCH**2)
        return {"encoder": tokens, "bridge": np.ones_like(tokens)}


def weights_of(store: Store) -> NDArray:
    return cluster_weights(store.patients[store.splits == "test"], replicates=50, seed=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return draw(tmp_path_factory.mktemp("dense"))


def test_read_masks__are_those_of_the_manifest(store: Store) -> None:
    assert mask_names(store) == ["spot"]
    found = read_masks(store, np.array([3, 0]), "spot")
    for row, mask in zip((3, 0), found, strict=True):
        assert mask is not None
        bright = store.image(row).float().mean(dim=0).numpy() > 150
        assert (mask == bright).all()
    assert read_masks(store, [0], "nothing") == [None]


def test_head__is_scikit_learns_logistic_regression_pixel_by_pixel() -> None:
    generator = np.random.Generator(np.random.Philox(1))
    tokens = generator.normal(size=(3, 16, 5))
    truth = generator.random((3, 8, 8)) < 0.4
    counted = generator.random((3, 8, 8)) < 0.8
    pixels = [Pixels(truth=t, counted=c) for t, c in zip(truth, counted, strict=True)]
    head = fit_heads(tokens, pixels, 2, [0.1])[0]
    x = tokens.reshape(-1, 5)
    x = (x - x.mean(axis=0)) / x.std(axis=0)

    def of_pixel(table: NDArray, image: int, p: int, q: int) -> NDArray:
        return table[image, p::2, q::2].ravel()

    for p, q in ((0, 0), (1, 0), (1, 1)):
        labels, used = (np.concatenate([of_pixel(table, k, p, q) for k in range(3)]) for table in (truth, counted))
        reference = LogisticRegression(C=0.1, tol=1e-10, max_iter=1000).fit(x[used], labels[used])
        expected = reference.predict_proba(x)[:, 1].reshape(3, 16)
        for image in range(3):
            found = of_pixel(head.probabilities(tokens[image])[None], 0, p, q)
            np.testing.assert_allclose(found, expected[image], atol=1e-5)


@given(arrays.arrays(bool, 12), arrays.arrays(bool, 12))
def test_dice__is_what_its_definition_says(first: NDArray, second: NDArray) -> None:
    a, b = set(np.flatnonzero(first)), set(np.flatnonzero(second))
    if a or b:
        assert dice(first, second) == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
    else:
        assert np.isnan(dice(first, second))


def test_dense_probe__finds_what_the_tokens_hold_and_nothing_in_constant_ones(store: Store) -> None:
    found = dense_probe(PixelModel(), store, weights_of(store), seed=0)
    label = found.section["encoder"]["per_label"]["spot"]
    assert label["auroc"]["value"] > 0.95
    assert label["dice"]["value"] > 0.8
    assert label["auroc"]["low"] <= label["auroc"]["value"] <= label["auroc"]["high"]
    assert label["auroc"]["n"] == 4
    assert found.section["encoder"]["macro"]["dice"]["value"] == pytest.approx(label["dice"]["value"])
    # Constant tokens know only where in a patch a pixel is, which says nothing about the picture.
    assert 0.3 < found.section["bridge"]["per_label"]["spot"]["auroc"]["value"] < 0.7
    assert found.table.num_rows == 8
    assert set(found.table.column("id").to_pylist()) == {store.ids[row] for row in store.rows("test")}
    assert dense_sheet(found.shown).startswith(b"\x89PNG")


class CountingPixels(PixelModel):
    """Counts the images whose tokens are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def patch_features(self, images: NDArray) -> dict[str, NDArray]:
        self.asked += len(images)
        return super().patch_features(images)


def test_dense_probe__tokens_are_computed_once_and_the_answers_are_the_same(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = dense_probe(PixelModel(), store, weights_of(store)).section
    model = CountingPixels()
    for _ in range(2):
        assert dense_probe(CachedFeatures(model, store, tmp_path), store, weights_of(store)).section == expected  # type: ignore[arg-type]
    assert model.asked == len(store.ids)
    assert len(list(tmp_path.iterdir())) == 1

    monkeypatch.setattr("maskedclip.evaluation.feature_cache.MOST_BYTES", 1000)
    for path in tmp_path.iterdir():
        path.unlink()
    assert dense_probe(CachedFeatures(model, store, tmp_path), store, weights_of(store)).section == expected  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    assert "patch tokens of 12 images are not kept" in " ".join(capsys.readouterr().err.split())


def test_dense_probe__reads_nothing_outside_the_field(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dense_probe(PixelModel(), store, weights_of(store)).section

    def spoilt(store: Store, rows: NDArray, name: str) -> list:
        masks = read_masks(store, rows, name)
        if name == "spot":
            masks = [None if mask is None else mask.copy() for mask in masks]
            for mask in masks:
                assert mask is not None
                mask[:, : SIDE // 4] ^= True
        return masks

    monkeypatch.setattr("maskedclip.evaluation.dense.read_masks", spoilt)
    assert dense_probe(PixelModel(), store, weights_of(store)).section == expected


def test_dense_probe__chooses_on_training_patients_where_there_is_no_validation(tmp_path: Path) -> None:
    store = draw(tmp_path, splits=("train", "test"), each=6)
    section = dense_probe(PixelModel(), store, weights_of(store)).section
    assert section["encoder"]["per_label"]["spot"]["auroc"]["value"] > 0.95
    assert 0 < section["encoder"]["chosen"]["spot"]["threshold"] < 1


def _without_spots(monkeypatch: pytest.MonkeyPatch, store: Store, split: str, keep: int = 0) -> None:
    """The masks of all images of a split but the first `keep` become empty."""
    healthy = store.rows(split)[keep:]

    def some(store: Store, rows: NDArray, name: str) -> list:
        masks = read_masks(store, rows, name)
        emptied = np.isin(rows, healthy) if name == "spot" else np.zeros(len(rows), bool)
        return [
            mask if mask is None or not empty else np.zeros_like(mask)
            for mask, empty in zip(masks, emptied, strict=True)
        ]

    monkeypatch.setattr("maskedclip.evaluation.dense.read_masks", some)


def test_dense_probe__chooses_on_training_patients_where_no_validation_image_has_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_spots(monkeypatch, store, "val")
    part = dense_probe(PixelModel(), store, weights_of(store)).section["encoder"]
    assert part["per_label"]["spot"]["dice"]["value"] > 0.8
    assert part["chosen"]["spot"]["threshold"] > 0.02  # the lowest is what nothing to choose by gave
    held_out = [_pixels(store, "spot", SIDE, seed)[0].choosing.tolist() for seed in range(6)]
    assert len(set(map(tuple, held_out))) > 1


def test_dense_probe__figures_are_over_images_that_have_it_and_false_alarms_are_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_spots(monkeypatch, store, "test", keep=2)
    found = dense_probe(PixelModel(), store, weights_of(store))
    part = found.section["encoder"]
    assert {part["per_label"]["spot"][metric]["n"] for metric in ("auroc", "auprc", "dice")} == {2}
    assert part["without"]["spot"]["images"] == 2
    assert part["without"]["spot"]["images_marked"] == 2  # the spots are still in the pictures
    assert 0 < part["without"]["spot"]["share_marked"] < 0.5


def test_dense_probe__says_why_there_is_no_value(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(store: Store, rows: NDArray, name: str) -> list:
        return [None if mask is None else mask & (name != "spot") for mask in read_masks(store, rows, name)]

    monkeypatch.setattr("maskedclip.evaluation.dense.read_masks", empty)
    found = dense_probe(PixelModel(), store, weights_of(store))
    label = found.section["encoder"]["per_label"]["spot"]["auroc"]
    assert label["value"] is None
    assert "the training masks have one class only" in label["note"]
    assert found.section["encoder"]["macro"]["auroc"]["value"] is None
    assert found.table.num_rows == 0


def test_dense_probe__refuses_a_size_that_patches_do_not_fill(store: Store) -> None:
    with pytest.raises(UserError, match="--dense-size: 30 px is no multiple of the encoder's 8 px patches"):
        dense_probe(PixelModel(), store, weights_of(store), size=30)


def test_dense_sheet__marks_found_missed_and_invented() -> None:
    truth = np.zeros((8, 8), bool)
    truth[0, :4] = True
    probability = np.zeros((8, 8), np.float32)
    probability[0, 2:6] = 1
    entry = Shown(
        label="spot",
        feature="encoder",
        image=np.zeros((8, 8, 3), np.uint8),
        truth=truth,
        probability=probability,
        field=np.ones((8, 8), bool),
        threshold=0.5,
    )
    sheet = np.asarray(Image.open(io.BytesIO(dense_sheet([entry]))))
    errors = sheet[16 : 16 + 224, 3 * 230 :]
    column = errors[4]
    assert tuple(column[12]) == (68, 140, 255)
    assert tuple(column[28 * 2 + 14]) == (255, 255, 255)
    assert tuple(column[28 * 4 + 14]) == (255, 120, 40)


def test_image_mean__is_the_weighted_mean_of_those_that_have_a_value() -> None:
    values = np.array([0.2, np.nan, 0.6, 1.0])
    patients = np.array(["a", "a", "b", "c"], dtype=object)
    found = image_mean(values, patients, np.array([[2, 2, 0, 1], [0, 0, 1, 2]]))
    assert found.value == pytest.approx(0.6)
    assert found.n == 3
    np.testing.assert_allclose(found.replicates, [(0.4 + 1) / 3, 2.6 / 3])
    alone = image_mean(np.array([0.2, 0.6]), np.array(["a", "a"], dtype=object), np.array([[1, 1], [2, 2]])).estimate()
    assert alone.value == pytest.approx(0.4)
    assert np.isnan(alone.low)


def test_dense_probe__a_damaged_image_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    row, sound = int(store.rows("test")[0]), []

    def read(self: Store, wanted: int, image: Callable[[Store, int], Tensor] = Store.image) -> Tensor:
        if wanted == row and not sound.pop():
            raise RuntimeError("no image")
        return image(self, wanted)

    monkeypatch.setattr(Store, "image", read)
    for reads in ([False], [False, True]):  # for its tokens, and to be drawn
        sound[:] = reads
        with pytest.raises(UserError, match=rf"--data: row {row} \(id {store.ids[row]}\) cannot be decoded"):
            dense_probe(PixelModel(), store, weights_of(store))
