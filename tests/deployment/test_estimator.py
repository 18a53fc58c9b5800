"""The model as a scikit-learn transformer: what scikit-learn demands of estimators, and the model's own numbers."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from maskedclip.deployment.estimator import ImageEncoder
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from tests.changed_weights import change_weights
from tests.stores import draw


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Twelve photographs, red spots on every other one."""
    base = tmp_path_factory.mktemp("estimator")
    for row in range(12):
        (base / f"{row}.png").write_bytes(draw(row, 32, row % 2))
    return [str(base / f"{row}.png") for row in range(12)]


@pytest.fixture(scope="module")
def fitted(trained_run: Path) -> ImageEncoder:
    return ImageEncoder(trained_run, device="cpu").fit()


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
        "check_get_feature_names_out_error",
        "check_mixin_order",
    ],
)
def test_scikit_learn__its_own_checks(check: str) -> None:
    """Those that need no table of numbers: the others fit on random floats (n, d), which are no photographs."""
    getattr(estimator_checks, check)("ImageEncoder", ImageEncoder())


def test_transform__the_models_numbers_for_every_kind(
    files: list[str], fitted: ImageEncoder, trained_model: Model
) -> None:
    expected = trained_model.encode_image(files)
    arrays = np.stack([np.asarray(Image.open(file)) for file in files])
    kinds = [
        files,
        [Path(file) for file in files],
        np.asarray(files),
        np.asarray(files, object)[:, None],
        [Image.open(file) for file in files],
        [Path(file).read_bytes() for file in files],
        arrays,
        list(arrays),
        torch.stack([trained_model.preprocess(file) for file in files]),
    ]
    for kind in kinds:
        assert np.array_equal(fitted.transform(kind), expected)
    small = ImageEncoder(fitted.run, batch=5).fit(files)
    assert np.allclose(small.transform(files), expected, atol=1e-6)
    assert fitted.transform([]).shape == (0, 48)
    assert np.array_equal(
        ImageEncoder(fitted.run, "projected").fit_transform(files), trained_model.encode_image(files, "projected")
    )


def test_pipeline__cross_validation(files: list[str], fitted: ImageEncoder) -> None:
    labels = np.arange(12) % 2
    pipeline = make_pipeline(clone(fitted), StandardScaler(), LogisticRegression())
    scores = cross_val_score(pipeline, np.asarray(files, object), labels, cv=3)
    apart = cross_val_score(pipeline[1:], fitted.transform(files), labels, cv=3)
    assert scores == pytest.approx(apart)


def test_pickle__holds_the_path_and_no_weights(files: list[str], fitted: ImageEncoder) -> None:
    fitted.transform(files[:1])
    packed = pickle.dumps(fitted)
    assert len(packed) < 2_000
    assert np.array_equal(pickle.loads(packed).transform(files), fitted.transform(files))


def test_pickle__another_model_at_the_path_is_refused(files: list[str], trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run / "model", tmp_path / "model")
    encoder = ImageEncoder(tmp_path).fit()
    packed = pickle.dumps(encoder)
    change_weights(tmp_path / "model")
    with pytest.raises(UserError, match="another model"):
        pickle.loads(packed).transform(files)


def test_set_output__names_of_columns(files: list[str], fitted: ImageEncoder) -> None:
    names = fitted.get_feature_names_out()
    assert list(names[:2]) == ["encoder0", "encoder1"]
    assert len(names) == 48
    polars = pytest.importorskip("polars")
    framed = ImageEncoder(fitted.run).set_output(transform="polars").fit(files).transform(files)
    assert isinstance(framed, polars.DataFrame)
    assert framed.columns == list(names)
    assert np.array_equal(framed.to_numpy(), fitted.transform(files))
    assert np.array_equal(fitted.transform(polars.DataFrame({"image": files})), fitted.transform(files))


def test_refused__in_one_line(files: list[str], fitted: ImageEncoder, tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        ImageEncoder(fitted.run).transform(files)
    for estimator, told in (
        (ImageEncoder(), "run: is empty"),
        (ImageEncoder(tmp_path / "none"), "no such model"),
        (ImageEncoder(fitted.run, "pooled"), "none of this model's outputs"),
        (ImageEncoder(fitted.run, batch=0), "batch: 0"),
    ):
        with pytest.raises(UserError, match=told):
            estimator.fit(files)
    for given, told in (
        ("eye.jpg", "one photograph"),
        (np.zeros((2, 5)), "not float64"),
        (5, "list of photographs"),
        (torch.zeros(1, 3, 32, 32), "uint8"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], "model.preprocess"),
        ([tmp_path / "none.png"], "no such image"),
    ):
        with pytest.raises(UserError, match=told):
            fitted.transform(given)
