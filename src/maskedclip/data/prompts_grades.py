"""What each grade of an ordinal label is called in reports: words for `prompts`, no logic.

Retinopathy follows the International Clinical Diabetic Retinopathy scale; the risk of macular oedema follows the
distance of hard exudates from the centre of the macula, as in IDRiD and Messidor.
"""

_RETINOPATHY_GRADES = {
    0: ("normal fundus", "no diabetic retinopathy", "no retinopathy", "no abnormality"),
    1: (
        "mild non proliferative retinopathy",
        "mild nonproliferative diabetic retinopathy",
        "a few microaneurysms only",
    ),
    2: (
        "moderate non proliferative retinopathy",
        "moderate nonproliferative diabetic retinopathy",
        "microaneurysms, scattered haemorrhages and hard exudates",
    ),
    3: (
        "severe non proliferative retinopathy",
        "severe nonproliferative diabetic retinopathy",
        "many haemorrhages in all quadrants with cotton wool spots and venous beading",
    ),
    4: (
        "proliferative diabetic retinopathy",
        "severe proliferative diabetic retinopathy",
        "new vessels, preretinal or vitreous haemorrhage, laser scars",
    ),
}
_MACULAR_OEDEMA_GRADES = {
    0: ("no macular edema", "no hard exudates", "macula without exudates"),
    1: (
        "mild risk of macular edema",
        "hard exudates outside the macula",
        "hard exudates more than one disc diameter from the fovea",
    ),
    2: ("macular edema", "hard exudates near the fovea", "hard exudates within one disc diameter of the fovea"),
}
_GLAUCOMA_GRADES = {
    0: ("normal optic disc", "no glaucoma", "small cup to disc ratio with a healthy neuroretinal rim"),
    1: (
        "early glaucoma",
        "suspected glaucoma",
        "enlarged optic cup with slight thinning of the neuroretinal rim",
        "cup to disc ratio of 0.6 to 0.7",
    ),
    2: (
        "advanced glaucoma",
        "severe glaucomatous optic neuropathy",
        "near total cupping of a pale optic disc",
        "cup to disc ratio of 0.9",
    ),
}
GRADES: dict[str, dict[int, tuple[str, ...]]] = {
    "dr grade": _RETINOPATHY_GRADES,
    "dr level": _RETINOPATHY_GRADES,
    "dr severity": _RETINOPATHY_GRADES,
    "icdr": _RETINOPATHY_GRADES,
    "icdr grade": _RETINOPATHY_GRADES,
    "retinopathy grade": _RETINOPATHY_GRADES,
    "diabetic retinopathy grade": _RETINOPATHY_GRADES,
    "diabetic retinopathy level": _RETINOPATHY_GRADES,
    "diabetic retinopathy severity": _RETINOPATHY_GRADES,
    "dme risk": _MACULAR_OEDEMA_GRADES,
    "dme grade": _MACULAR_OEDEMA_GRADES,
    "macular edema risk": _MACULAR_OEDEMA_GRADES,
    "macular oedema risk": _MACULAR_OEDEMA_GRADES,
    "risk of macular edema": _MACULAR_OEDEMA_GRADES,
    "glaucoma stage": _GLAUCOMA_GRADES,
    "glaucoma grade": _GLAUCOMA_GRADES,
    "glaucoma severity": _GLAUCOMA_GRADES,
}
