from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation

from maskedclip.data.phantom_canvas import View, blobs, fill_outlines
from maskedclip.data.phantom_fundus import paint_fundus
from maskedclip.data.phantom_lesions import LESIONS
from maskedclip.data.phantom_patient import DISEASES, FINDINGS, Eye, Patient, Side, draw_eye, draw_patient, stream
from maskedclip.data.phantom_vessels import grow_vessels

SIZE = 128


def _grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    return np.asarray(binary_dilation(mask, iterations=pixels))


def _eye(patient: int, shared: Patient, **findings: int) -> Eye:
    """An eye that has just these findings."""
    eye = draw_eye(0, patient, "right", shared)
    healthy = replace(eye, diseases=dict.fromkeys(DISEASES, 0), wet=False, cup_ratio=0.4)
    return replace(healthy, findings=dict.fromkeys(FINDINGS, 0) | findings)


def _paint(patient: int, **findings: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    shared = draw_patient(0, patient)
    return paint_fundus(0, patient, shared, _eye(patient, shared, **findings), SIZE)


@pytest.mark.parametrize("kind", LESIONS)
def test_paint_fundus__area_grows_with_severity(kind: str) -> None:
    area = [np.mean([_paint(p, **{kind: severity})[1][kind].sum() for p in range(8)]) for severity in (1, 2, 3)]
    assert 0 < 1.2 * area[0] < area[1]
    assert 1.2 * area[1] < area[2]


@pytest.mark.parametrize("kind", [kind for kind in LESIONS if kind != "myopic_crescent"])
def test_paint_fundus__mask_is_where_the_picture_changes(kind: str) -> None:
    inside, outside = [], []
    for patient in range(4):
        plain, _ = _paint(patient)
        marked, masks = _paint(patient, **{kind: 2})
        change = np.abs(marked.astype(int) - plain).sum(axis=2)
        inside.append(change[masks[kind]].mean())
        outside.append(change[~_grown(masks[kind], 5)].mean())
    assert np.mean(inside) > 25
    assert np.mean(outside) < 2


def test_paint_fundus__opacity_veils_the_fundus() -> None:
    contrast = []
    for severity in range(4):
        spread = []
        for patient in range(6):
            image, masks = _paint(patient, media_opacity=severity)
            green = image[..., 1].astype(float)
            vessel = masks["vessel"] & ~_grown(masks["disc"], 4)
            beside = _grown(vessel, 3) & ~_grown(vessel, 1)
            spread.append((green[beside].mean() - green[vessel].mean()) / green[beside].mean())
        contrast.append(np.mean(spread))
    assert contrast == sorted(contrast, reverse=True)
    assert contrast[3] < 0.4 * contrast[0]


def test_paint_fundus__veins_are_darker_than_arteries_and_the_cup_brighter_than_the_rim() -> None:
    for patient in range(6):
        image, masks = _paint(patient)
        green = image[..., 1].astype(float)
        off_disc = ~_grown(masks["disc"], 3)
        vein, artery = (masks[a] & ~masks[b] & off_disc for a, b in (("vein", "artery"), ("artery", "vein")))
        assert green[vein].mean() < green[artery].mean()
        free = ~_grown(masks["vessel"], 1)
        rim = green[masks["disc"] & ~masks["cup"] & free].mean()
        assert rim > green[_grown(masks["disc"], 8) & free & off_disc].mean()
        if (masks["cup"] & free).sum() > 5:
            assert green[masks["cup"] & free].mean() > rim


def test_paint_fundus__macula_is_dark() -> None:
    image, _ = _paint(1)
    middle, above = image[60:70, 58:70, 1].mean(), image[38:48, 58:70, 1].mean()
    assert middle < above


def test_grow_vessels__trunks_leave_the_disc_and_none_reaches_the_fovea() -> None:
    patient, disc, fovea = draw_patient(0, 0), np.array([0.62, 0.0]), np.array([-0.02, 0.04])
    for seed in range(5):
        arteries, veins = grow_vessels(stream(seed, 0, "test"), patient, disc, fovea, 0.4)
        assert min(len(arteries), len(veins)) >= 15
        points = np.concatenate(arteries + veins)
        assert np.hypot(*(points - disc).T).min() < patient.disc_radius
        assert np.hypot(*(points - fovea).T).min() > 0.09
        assert np.median(np.hypot(*points.T)) < 1.0
        for upper in (True, False):  # both halves, and on both sides of the disc
            half = points[(points[:, 1] < 0) == upper]
            assert half[:, 0].min() < -0.4
            assert half[:, 0].max() > 0.7


@given(
    side=st.sampled_from(("left", "right")),
    tilt=st.floats(-0.3, 0.3),
    cut=st.sampled_from(((2.0, 2.0), (0.8, 0.9))),
    shift=st.floats(-0.05, 0.05),
    point=st.tuples(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9)),
)
@settings(max_examples=60, deadline=None)
def test_view__grid_inverts_to_picture(side: Side, tilt: float, cut: tuple, shift: float, point: tuple) -> None:
    view = View(size=64, centre=(0.5 + shift, 0.5 - shift), radius=0.48, tilt=tilt, cut=cut, side=side)
    place = np.array(point)
    column, row = np.floor(view.to_picture(place) * 64).astype(int)
    if 0 <= column < 64 and 0 <= row < 64:
        x, y = view.grid
        assert np.hypot(x[row, column] - place[0], y[row, column] - place[1]) < 1.5 / (0.48 * 64)
        if view.contains(place, 0.1):
            assert view.coverage[row, column] == 1
        if not view.contains(place, -0.1):
            assert view.coverage[row, column] == 0


@pytest.mark.parametrize("size", [64, 256, 900])
def test_fill_outlines__covers_the_area_of_a_square(size: int) -> None:
    view = View(size=size, centre=(0.5, 0.5), radius=0.5, tilt=0.0, cut=(2.0, 2.0), side="right")
    square = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    coverage = fill_outlines(view, [square])
    assert coverage.mean() == pytest.approx(0.25, rel=0.02)
    assert fill_outlines(view, []).max() == 0


def test_blobs__keep_their_area_when_stretched() -> None:
    rng = stream(0, 0, "test")
    centres, radii = np.zeros((200, 2)), np.full(200, 0.1)
    for stretch in (1.0, 3.0):
        x, y = np.moveaxis(blobs(rng, centres, radii, raggedness=0.1, stretch=stretch, corners=32), -1, 0)
        area = np.abs((x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(axis=1)) / 2
        assert area.mean() == pytest.approx(np.pi * 0.01, rel=0.05)
        assert np.ptp(x, axis=1).mean() / np.ptp(y, axis=1).mean() == pytest.approx(stretch, rel=0.1)
