"""The picture of a phantom: retina, macula, disc, vessels and lesions, seen through the media and a fundus camera.

A picture under way is planar, (3, H, W) float32 in 0..1; layers either absorb (blood, pigment) or paint (exudates).
All lengths are in radii of the field, so that a scene is the same at each size.
"""

import io
import math

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter
from scipy.ndimage import map_coordinates

from maskedclip.data.phantom_canvas import View, absorb, blend, fill_outlines, resize, smooth_noise
from maskedclip.data.phantom_lesions import LESIONS, Anatomy, draw_lesions
from maskedclip.data.phantom_patient import Eye, Patient, stream
from maskedclip.data.phantom_vessels import grow_vessels

_VISIBLE = 0.35  # a mask holds the pixels of which a structure covers more than this share
_VEIN, _ARTERY = (0.36, 0.95, 0.75), (0.1, 0.55, 0.45)
_VEIL = np.array([0.80, 0.74, 0.56])  # light that a cloudy lens scatters
_HAZE = ((0.0, 0.0), (0.27, 0.36), (0.46, 0.56), (0.66, 0.76))  # share of that light by severity of the opacity
_HAZE_BLUR = (0.0, 0.006, 0.011, 0.019)


def paint_fundus(seed: int, index: int, patient: Patient, eye: Eye, size: int) -> tuple[np.ndarray, dict]:
    """The photograph, (H, W, 3) uint8, and the masks, name -> (H, W) bool, of one eye of patient number `index`."""
    scene = stream(seed, index, f"scene {eye.side}")
    view, anatomy = _place(scene, patient, eye, size)
    retina, tree, lesion, camera = scene.spawn(4)
    layers = [
        (layer, fill_outlines(view, layer.outlines, layer.softness))
        for layer in draw_lesions(lesion, eye, view, anatomy)
    ]
    arteries, veins = grow_vessels(tree, patient, anatomy.disc, anatomy.fovea, eye.cup_ratio)
    shape = fill_outlines(view, arteries), fill_outlines(view, veins)

    picture = _paint_retina(retina, patient, eye, view, anatomy)
    _add(picture, [pair for pair in layers if pair[0].kind == "myopic_crescent"])
    disc = _ellipse(view, anatomy.disc, anatomy.disc_axes)
    cup = _ellipse(view, anatomy.cup, anatomy.cup_axes)
    _paint_disc(retina, picture, patient, view, anatomy, disc, cup)
    _add(picture, [pair for pair in layers if pair[0].deep and pair[0].kind != "myopic_crescent"])
    absorb(picture, _VEIN, shape[1] * np.float32(patient.vessel_contrast))
    absorb(picture, _ARTERY, shape[0] * np.float32(patient.vessel_contrast))
    _add(picture, [pair for pair in layers if not pair[0].deep])

    photograph = _photograph(camera, picture, patient, eye, view)
    return photograph, _masks(view, disc < 1, cup < 1, shape, layers)


def _place(rng: Generator, patient: Patient, eye: Eye, size: int) -> tuple[View, Anatomy]:
    """Where the field lies in the picture and the disc, cup and fovea in the field."""
    view = View(
        size=size,
        centre=(float(0.5 + rng.normal(0, 0.006)), float(0.5 + rng.normal(0, 0.006))),
        radius=patient.field_radius,
        tilt=float(rng.normal(0, 0.05)),
        cut=patient.field_cut,
        side=eye.side,
    )
    fovea = np.array([-0.02, 0.04]) + rng.normal(0, (0.07, 0.045))
    disc = fovea + np.array([patient.disc_distance, -0.06]) + rng.normal(0, 0.02, 2)
    axes = patient.disc_radius * np.array([rng.uniform(0.86, 0.97), rng.uniform(0.99, 1.08)])
    cup_axes = axes * eye.cup_ratio * (rng.uniform(0.86, 1.0), 1.0)  # a glaucomatous cup is taller than wide
    slack = axes - cup_axes
    cup = disc + slack * rng.uniform((-0.35, -0.2), (-0.05, 0.2))  # leaning towards the temporal rim
    return view, Anatomy(disc=disc, disc_axes=axes, cup=cup, cup_axes=cup_axes, fovea=fovea)


def _paint_retina(rng: Generator, patient: Patient, eye: Eye, view: View, anatomy: Anatomy) -> np.ndarray:
    """The fundus without disc and vessels: pigment, choroid, nerve fibres, macula, (3, H, W)."""
    size = view.size
    picture = np.empty((3, size, size), np.float32)
    picture[:] = patient.tint[:, None, None] * rng.normal(1, 0.03, (3, 1, 1))
    coarse = 0.05 * smooth_noise(rng, 5, 80) + 0.025 * smooth_noise(rng, 24, 80)
    absorb(picture, (0.7, 1.0, 0.9), resize(coarse + np.float32(0.02) * smooth_noise(rng, 80, 80), size))
    absorb(picture, (0.4, 0.0, -0.5), 0.06 * smooth_noise(rng, 2, size))  # the colour drifts over the field

    x, y = view.grid
    from_fovea = np.square(x - np.float32(anatomy.fovea[0])) + np.square(y - np.float32(anatomy.fovea[1]))
    macula = np.exp(from_fovea * np.float32(-1 / (2 * rng.uniform(0.13, 0.23) ** 2)))
    pit = np.exp(from_fovea * np.float32(-1 / (2 * rng.uniform(0.035, 0.055) ** 2)))
    streaks, sheen = _radial_texture(rng, view, anatomy.disc, patient.disc_radius)
    thinned = min(1.0, patient.tessellation + 0.22 * eye.findings["myopic_crescent"])
    choroid = (streaks * (1 - macula) - np.float32(0.8)) * np.float32(thinned)  # as dark as bright on the whole
    absorb(picture, (-0.32, -0.3, -0.2), choroid)
    blend(picture, np.minimum(1, patient.tint * 1.45), np.clip(sheen * np.float32(patient.fibre_sheen), 0, 0.6))
    centre = macula * np.float32(rng.uniform(0.7, 1.3)) + pit * np.float32(rng.uniform(0.5, 1.3))
    absorb(picture, (0.23, 0.42, 0.3), centre)
    if rng.random() < 0.35:  # the foveal reflex of a young or well-lit eye
        glint = np.exp(from_fovea * np.float32(-1 / (2 * 0.014**2)))
        blend(picture, np.minimum(1, patient.tint * 1.6), glint * np.float32(rng.uniform(0.2, 0.6)))
    return picture


def _radial_texture(rng: Generator, view: View, disc: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Choroidal vessels that fan out and nerve-fibre sheen around the disc, each (H, W), about 0..1.

    Both are noise in (angle, log distance) around a point, drawn at half the size.
    """
    half = View(
        size=view.size // 2, centre=view.centre, radius=view.radius, tilt=view.tilt, cut=view.cut, side=view.side
    )
    x, y = half.grid
    dx, dy = x - np.float32(disc[0] - 0.15), y - np.float32(disc[1])
    far = np.hypot(dx, dy)
    wobble = resize(rng.standard_normal((8, 8), dtype=np.float32), half.size)
    rings = np.log1p(3 * far) / np.float32(np.log(8))

    def noise_at(spokes: int, circles: int) -> np.ndarray:
        nodes = rng.standard_normal((spokes, circles + 2), dtype=np.float32)
        nodes = np.concatenate([nodes, nodes[:1]])  # closes the circle
        return map_coordinates(nodes, [turns * spokes, rings * circles], order=1, mode="nearest")

    turns = (np.arctan2(dy, dx) + 0.08 * wobble) / (2 * np.pi) % 1.0
    network = noise_at(96, 12)
    network = np.clip(np.float32(0.35) + network, 0, 1.3)
    network *= np.clip(np.float32(2.2) * far - np.float32(0.2), 0, 1)
    spoke = noise_at(180, 2)
    sheen = (0.3 + 0.16 * spoke) * np.exp(-np.maximum(far - np.float32(radius), 0) / np.float32(0.25))
    return resize(network, view.size), resize(sheen, view.size)


def _paint_disc(
    rng: Generator,
    picture: np.ndarray,
    patient: Patient,
    view: View,
    anatomy: Anatomy,
    disc: np.ndarray,
    cup: np.ndarray,
) -> None:
    """The optic disc: pinkish rim, paler towards the fovea; the cup paler still.  disc, cup: `_ellipse` of each."""
    across = (view.grid[0] - np.float32(anatomy.disc[0])) / np.float32(anatomy.disc_axes[0])
    halo = np.exp(-np.square(np.maximum(disc - 1, 0) / np.float32(0.5)))
    blend(picture, np.minimum(1, patient.tint * 1.5), halo * np.float32(rng.uniform(0.1, 0.3)))
    inside = _soft_step(disc, 1.0, 0.14)
    light = np.array([1.0, 0.84, 0.58])
    rim = 0.6 * np.minimum(1, patient.tint * 1.4) + 0.4 * light * (1.0, 0.84, 0.7)
    blend(picture, rim, inside)
    blend(picture, light, inside * np.clip(np.float32(0.12) - np.float32(0.22) * across, 0, 0.4))
    pallor = np.array([1.0, 0.95, 0.78])
    blend(picture, pallor, _soft_step(cup, 1.0, 0.3) * np.float32(rng.uniform(0.7, 0.95)))


def _ellipse(view: View, centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Distance from the centre in half axes: 1 on the ellipse, (H, W)."""
    x, y = view.grid
    u, v = (x - np.float32(centre[0])) / np.float32(axes[0]), (y - np.float32(centre[1])) / np.float32(axes[1])
    return np.sqrt(u * u + v * v)


def _soft_step(distance: np.ndarray, edge: float, width: float) -> np.ndarray:
    """1 within the edge, 0 outside, over a ramp of `width` centred on it."""
    t = np.clip((np.float32(edge + width / 2) - distance) / np.float32(width), 0, 1)
    return t * t * (3 - 2 * t)


def _add(picture: np.ndarray, layers: list) -> None:
    """Paint or absorb lesions, given with their coverage."""
    for lesion, coverage in layers:
        if lesion.paint is None:
            absorb(picture, lesion.density, coverage * np.float32(lesion.strength))
        else:
            blend(picture, np.array(lesion.paint), coverage * np.float32(lesion.strength))


def _photograph(rng: Generator, picture: np.ndarray, patient: Patient, eye: Eye, view: View) -> np.ndarray:
    """Light, cloudy media, optics, sensor and JPEG, (H, W, 3) uint8."""
    x, y = view.grid
    light, blur, noise = rng.spawn(3)
    slope = light.normal(0, 0.14, 2)
    fall = patient.vignette * light.uniform(0.8, 1.2)
    squared = x * x + y * y
    exposure = patient.exposure * light.uniform(0.93, 1.07)
    lit = np.float32(exposure) * (1 + np.float32(slope[0]) * x + np.float32(slope[1]) * y - np.float32(fall) * squared)
    picture *= np.maximum(lit, 0.1)

    opacity = eye.findings["media_opacity"]
    if opacity:
        veil = np.clip(light.uniform(*_HAZE[opacity]) * (1 + 0.12 * smooth_noise(light, 3, view.size)), 0, 0.85)
        blend(picture, (0.7 * _VEIL + 0.3 * patient.tint) * exposure * 0.85, veil)
    _rim_haze(light, picture, patient, squared, x, y)
    picture *= view.coverage

    pixels = np.clip(picture * np.float32(255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    defocus = patient.sharpness * blur.uniform(0.8, 1.25) * view.radius * view.size  # standard deviation, pixels
    image = image.filter(ImageFilter.BoxBlur((math.sqrt(12 * defocus**2 + 1) - 1) / 2))  # of the same deviation
    if opacity:
        image = image.filter(ImageFilter.GaussianBlur(_HAZE_BLUR[opacity] * view.radius * view.size))
    return _develop(noise, image, patient.noise, patient.jpeg_quality)


def _rim_haze(
    rng: Generator, picture: np.ndarray, patient: Patient, squared: np.ndarray, x: np.ndarray, y: np.ndarray
) -> None:
    """Pale light that creeps in from one side of the pupil's edge."""
    towards = rng.uniform(0, 2 * np.pi)
    lean = np.float32(np.cos(towards)) * x + np.float32(np.sin(towards)) * y
    share = squared * np.sqrt(squared) * np.clip(np.float32(0.35) + np.float32(0.65) * lean, 0, 1)
    colour = np.array([0.66, 0.66, 0.46]) * rng.uniform(0.8, 1.1, 3)
    blend(picture, np.minimum(1, colour), share * np.float32(0.9 * patient.rim_haze * rng.uniform(0.6, 1)))


def _develop(rng: Generator, image: Image.Image, sigma: float, quality: int) -> np.ndarray:
    """What is left after the sensor's grain and the camera's JPEG, (H, W, 3) uint8.

    Grain is added to the luminance only, of which JPEG keeps most.  The sum of two bytes has a triangular
    distribution: near enough to normal, and a tenth of the cost.
    """
    luminance, blue, red = image.convert("YCbCr").split()
    dice = rng.integers(0, 256, (2, image.height, image.width), dtype=np.uint8)
    grain = (dice[0].astype(np.float32) + dice[1] - 255) * np.float32(sigma / 104.5)
    noisy = np.clip(np.asarray(luminance) + grain + np.float32(0.5), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.merge("YCbCr", (Image.fromarray(noisy), blue, red)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def _masks(
    view: View, disc: np.ndarray, cup: np.ndarray, vessels: tuple[np.ndarray, np.ndarray], layers: list
) -> dict[str, np.ndarray]:
    """Name -> (H, W) bool, all inside the field; the lesions' only where the eye has them."""
    field = view.coverage > 0.5
    artery, vein = (shape > _VISIBLE for shape in vessels)
    masks = {"vessel": artery | vein, "artery": artery, "vein": vein, "disc": disc, "cup": cup & disc}
    for kind in LESIONS:
        covered = [_outlined(coverage) for lesion, coverage in layers if lesion.kind == kind]
        if covered:
            masks[kind] = np.logical_or.reduce(covered)
    if "myopic_crescent" in masks:
        masks["myopic_crescent"] &= ~disc
    return {name: mask & field for name, mask in masks.items()}


def _outlined(coverage: np.ndarray) -> np.ndarray:
    """Where a lesion is, (H, W) bool; in a small picture, where no pixel is well covered, the best covered ones."""
    return coverage > min(_VISIBLE, 0.7 * float(coverage.max()))
