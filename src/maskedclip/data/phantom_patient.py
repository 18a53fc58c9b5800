"""Who a phantom is: the patient's traits and the diseases and findings of each eye, all pure functions of the seed.

Diseases come first, findings follow from them (so that they occur together as in a clinic), and both eyes of a
patient share the disease, most of its severity, the pigment, the camera and the style of the vessels.  The rates
are ours: they give about half of the eyes no finding at all, not the prevalence of any population.
"""

from dataclasses import dataclass
from typing import Literal, get_args
from zlib import crc32

import numpy as np
from numpy.random import Generator, Philox, SeedSequence

Side = Literal["left", "right"]
SIDES: tuple[Side, ...] = get_args(Side)

DISEASES = ("diabetic_retinopathy", "glaucoma", "cataract", "amd", "pathological_myopia")
FINDINGS = (
    "microaneurysm",
    "haemorrhage",
    "hard_exudate",
    "cotton_wool_spot",
    "drusen",
    "wide_cup",
    "media_opacity",
    "myopic_crescent",
    "laser_scar",
)
_SPLITS = (("train", 0.7), ("val", 0.8), ("test", 1.0))  # upper ends of the shares 70 / 10 / 20 %
_CUP_RATIO = ((0.24, 0.48), (0.56, 0.65), (0.68, 0.78), (0.82, 0.92))  # vertical cup-to-disc ratio by severity

# Colours of the fundus, RGB in 0..1, between which pigment and camera of a patient are mixed.
_TINTS = np.array(
    [
        [0.86, 0.46, 0.18],  # orange
        [0.62, 0.30, 0.16],  # red-brown
        [0.76, 0.50, 0.42],  # pinkish
        [0.58, 0.42, 0.13],  # olive
        [0.84, 0.60, 0.40],  # pale tan
        [0.92, 0.56, 0.14],  # amber
        [0.66, 0.50, 0.44],  # greyish
    ]
)


def stream(seed: int, patient: int, purpose: str) -> Generator:
    """An independent random stream for one purpose of one patient; drawing more from one never moves another."""
    return Generator(Philox(SeedSequence(seed, spawn_key=(patient, crc32(purpose.encode())))))


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What both eyes share.  Lengths are in radii of the photographed field, colours RGB in 0..1."""

    age: int
    sex: Literal["Female", "Male"]
    burden: dict[str, int]  # disease -> severity around which both eyes lie; absent = healthy
    tint: np.ndarray  # (3,) colour of the fundus through this camera
    tessellation: float  # 0..1, how far choroidal vessels show through a thin pigment
    fibre_sheen: float  # 0..1, nerve-fibre striations; strong in the young
    disc_radius: float
    disc_distance: float  # of the disc from the fovea
    vessel_width: float  # factor
    artery_share: float  # width of an artery / width of its vein
    tortuosity: float  # 0..1
    vessel_contrast: float
    field_radius: float  # as a share of the picture's side
    field_cut: tuple[float, float]  # the field ends above -top and below +bottom; > 1 = not cut
    exposure: float
    vignette: float
    rim_haze: float  # 0..1, pale light along the edge of the field
    sharpness: float  # blur of the optics, standard deviation
    noise: float  # standard deviation of the sensor's noise, of 255
    jpeg_quality: int


@dataclass(frozen=True, kw_only=True)
class Eye:
    """What one eye has.

    findings: severity 0 (none) to 3 (severe) of each of FINDINGS.  diseases: the grade 0-4 of diabetic_retinopathy,
    severity 0-3 of the others.  cup_ratio: vertical cup-to-disc ratio.  wet: neovascular macular degeneration, which
    bleeds at the macula.
    """

    side: Side
    findings: dict[str, int]
    diseases: dict[str, int]
    cup_ratio: float
    wet: bool

    @property
    def normal(self) -> bool:
        """No finding of any severity."""
        return not any(self.findings.values())


def split_of(seed: int, patient: int) -> str:
    """`train`, `val` or `test` (about 70, 10, 20 % of the patients)."""
    draw = stream(seed, patient, "split").random()
    return next(name for name, end in _SPLITS if draw < end)


def draw_patient(seed: int, patient: int) -> Patient:
    """The traits that both eyes of patient number `patient` share."""
    rng = stream(seed, patient, "patient")
    age = int(np.clip(rng.normal(58, 13), 25, 90))
    youth = float(np.clip((60 - age) / 30, 0, 1))
    mix = rng.dirichlet(np.full(len(_TINTS), 0.35))
    return Patient(
        age=age,
        sex="Female" if rng.random() < 0.5 else "Male",
        burden=_burden(stream(seed, patient, "burden"), age),
        tint=np.clip(mix @ _TINTS * rng.normal(1, 0.05, 3), 0.05, 1.0),
        tessellation=float(rng.beta(1.2, 3.5)),
        fibre_sheen=float(rng.uniform(0.2, 0.5) + 0.5 * youth * rng.random()),
        disc_radius=float(rng.uniform(0.135, 0.172)),
        disc_distance=float(rng.uniform(0.60, 0.70)),
        vessel_width=float(rng.uniform(0.85, 1.15)),
        artery_share=float(rng.uniform(0.62, 0.76)),
        tortuosity=float(rng.beta(1.6, 3)),
        vessel_contrast=float(rng.uniform(0.65, 1.05)),
        field_radius=float(rng.uniform(0.465, 0.498)),
        field_cut=_field_cut(rng),
        exposure=float(np.clip(rng.normal(1.0, 0.17), 0.6, 1.35)),
        vignette=float(0.06 + 0.5 * rng.beta(1.3, 2)),
        rim_haze=float(rng.beta(1, 2.5)),
        sharpness=float(rng.uniform(0.0035, 0.0075)),
        noise=float(rng.uniform(1.0, 3.5)),
        jpeg_quality=int(rng.integers(72, 97)),
    )


def draw_eye(seed: int, patient: int, side: Side, shared: Patient) -> Eye:
    """The diseases and findings of one eye of patient number `patient`, whose traits are `shared`."""
    rng = stream(seed, patient, f"eye {side}")
    diseases = {disease: _eye_severity(rng, disease, shared.burden.get(disease, 0)) for disease in DISEASES}
    findings = dict.fromkeys(FINDINGS, 0)
    findings |= _retinopathy_findings(rng, diseases["diabetic_retinopathy"])
    findings["wide_cup"] = diseases["glaucoma"]
    findings["media_opacity"] = diseases["cataract"]
    findings["myopic_crescent"] = diseases["pathological_myopia"]
    lone_drusen = shared.burden.get("lone_drusen", 0) if rng.random() < 0.8 else 0
    findings["drusen"] = diseases["amd"] or lone_drusen
    lone_bleed = shared.burden.get("lone_bleed", 0) if rng.random() < 0.6 else 0
    for finding in ("haemorrhage", "cotton_wool_spot"):  # as a vein occlusion or hypertension would
        if lone_bleed and rng.random() < 0.75:
            findings[finding] = max(findings[finding], lone_bleed)
    wet = diseases["amd"] == 3 and rng.random() < 0.5
    if wet:
        findings["haemorrhage"] = max(findings["haemorrhage"], 2)
    cup_ratio = float(rng.uniform(*_CUP_RATIO[findings["wide_cup"]]))
    return Eye(side=side, findings=findings, diseases=diseases, cup_ratio=cup_ratio, wet=wet)


def _burden(rng: Generator, age: int) -> dict[str, int]:
    """Disease -> the patient's severity; `lone_drusen` and `lone_bleed` are findings that belong to no disease here."""
    old = float(np.clip((age - 30) / 55, 0, 1))
    rate = {
        "diabetic_retinopathy": 0.27,
        "glaucoma": 0.04 + 0.08 * old,
        "cataract": 0.03 + 0.26 * old**2,
        "amd": 0.03 + 0.26 * old**2,
        "pathological_myopia": 0.11 - 0.04 * old,
        "lone_drusen": 0.02 + 0.06 * old,
        "lone_bleed": 0.03,
    }
    weights = {"diabetic_retinopathy": (0.24, 0.36, 0.2, 0.2), "lone_drusen": (1.0,), "lone_bleed": (0.6, 0.4)}
    burden = {}
    for name, chance in rate.items():
        grades = weights.get(name, (0.3, 0.38, 0.32))
        present, draw = rng.random() < chance, rng.random()
        if present:
            burden[name] = 1 + int(np.searchsorted(np.cumsum(grades)[:-1], draw, side="right"))
    return burden


def _eye_severity(rng: Generator, disease: str, shared: int) -> int:
    """The second eye mostly resembles the first: one grade up or down, now and then spared."""
    spared, shift = rng.random() < 0.12, (-1, 0, 0, 0, 1)[rng.integers(5)]
    worst = 4 if disease == "diabetic_retinopathy" else 3
    return 0 if shared == 0 or spared else min(max(shared + shift, 1), worst)


def _retinopathy_findings(rng: Generator, grade: int) -> dict[str, int]:
    """Findings of a grade, after the International Clinical Diabetic Retinopathy scale.

    1: microaneurysms only.  2: more than that, less than severe.  3: many haemorrhages.  4: proliferative, drawn as
    grade 3 with more bleeding and, mostly, the scars of its laser treatment.
    """
    if grade == 0:
        return {}
    if grade == 1:
        return {"microaneurysm": int(rng.integers(1, 3))}

    def perhaps(chance: float, low: int, high: int) -> int:
        present, severity = rng.random() < chance, int(rng.integers(low, high + 1))
        return severity if present else 0

    if grade == 2:
        found = {
            "microaneurysm": perhaps(1.0, 1, 3),
            "haemorrhage": perhaps(0.75, 1, 2),
            "hard_exudate": perhaps(0.55, 1, 2),
            "cotton_wool_spot": perhaps(0.25, 1, 1),
            "laser_scar": perhaps(0.1, 1, 2),
        }
        if not found["haemorrhage"] + found["hard_exudate"] + found["cotton_wool_spot"]:
            found["haemorrhage"] = 1  # else it would be grade 1
        return found
    return {
        "microaneurysm": perhaps(1.0, 2, 3),
        "haemorrhage": perhaps(1.0, 2, 3) if grade == 3 else 3,
        "hard_exudate": perhaps(0.65, 1, 3),
        "cotton_wool_spot": perhaps(0.55, 1, 3),
        "laser_scar": perhaps(0.25 if grade == 3 else 0.75, 1, 3),
    }


def _field_cut(rng: Generator) -> tuple[float, float]:
    """Some cameras cut the circle at the top, some at top and bottom."""
    style, top, bottom = rng.random(), *rng.uniform(0.78, 0.95, 2)
    if style < 0.12:
        return float(top), float(top)
    if style < 0.22:
        return float(top), 2.0
    if style < 0.28:
        return 2.0, float(bottom)
    return 2.0, 2.0
