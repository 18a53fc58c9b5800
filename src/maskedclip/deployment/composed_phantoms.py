"""Phantom pairs for composed retrieval: the same eye, in the same light, with just one finding more.

A finding is drawn from a stream of its own, so what else an eye has stays where it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from maskedclip.data.phantom_fundus import paint_fundus
from maskedclip.data.phantom_patient import FINDINGS, Side, draw_eye, draw_patient
from maskedclip.data.prompts import humanise
from maskedclip.deployment.composed_triplets import ADDED

ADDABLE = tuple(name for name in FINDINGS if name not in ("microaneurysm", "wide_cup"))
"""Findings that can be added: microaneurysms are below a pixel at the sizes of small models, and a wide cup moves what
lies around it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Addition:
    """The eye with one finding more: its name, the caption that asks for it, and the photograph (H, W, 3)."""

    finding: str
    caption: str
    image: NDArray[np.uint8]


def draw_additions(
    seed: int, patient: int, side: Side, size: int = 256, *, severity: int = 3, findings: Sequence[str] = ADDABLE
) -> tuple[NDArray[np.uint8], list[Addition]]:
    """One eye as it is, and once with each of the findings that it lacks.

    Args:
        seed, patient, side, size: as of `draw_phantom`.
        severity: of what is added, 1 to 3.
        findings: what may be added.

    Returns: the eye (H, W, 3), and the same eye with one finding more, for each that it lacks.
    """
    shared = draw_patient(seed, patient)
    eye = draw_eye(seed, patient, side, shared)
    image, _ = paint_fundus(seed, patient, shared, eye, size)
    found = []
    for finding in findings:
        if not eye.findings[finding]:
            other = replace(eye, findings=eye.findings | {finding: severity})
            drawn, _ = paint_fundus(seed, patient, shared, other, size)
            found.append(Addition(finding=finding, caption=ADDED.format(humanise(finding)), image=drawn))
    return image, found
