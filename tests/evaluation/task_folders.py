"""Tiny public sets: each function draws the folders and tables of a set as it is distributed, with own images.

Names are written out here, not read from the task files, so that the two check each other.
"""

import csv
import re
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

RETINOPATHY = ["anodr", "bmilddr", "cmoderatedr", "dseveredr", "eproliferativedr"]
_JSIEC = """0.0.Normal|0.1.Tessellated fundus|0.2.Large optic cup|0.3.DR1|1.0.DR2|1.1.DR3|2.0.BRVO|2.1.CRVO|3.RAO
4.Rhegmatogenous RD|5.0.CSCR|5.1.VKH disease|6.Maculopathy|7.ERM|8.MH|9.Pathological myopia|10.0.Possible glaucoma
10.1.Optic atrophy|11.Severe hypertensive retinopathy|12.Disc swelling and elevation|13.Dragged Disc
14.Congenital disc abnormality|15.0.Retinitis pigmentosa|15.1.Bietti crystalline dystrophy
16.Peripheral retinal degeneration and break|17.Myelinated nerve fiber|18.Vitreous particles|19.Fundus neoplasm
20.Massive hard exudates|21.Yellow-white spots-flecks|22.Cotton-wool spots|23.Vessel tortuosity
24.Chorioretinal atrophy-coloboma|25.Preretinal hemorrhage|26.Fibrosis|27.Laser Spots|28.Silicon oil in eye
29.0.Blur fundus without PDR|29.1.Blur fundus with suspected PDR"""
JSIEC = re.split(r"[|\n]", _JSIEC)
RFMID = re.findall(
    r"\w+",
    """DR ARMD MH DN MYA BRVO TSLN ERM LS MS CSR ODC CRVO TV AH ODP ODE ST AION PT RT RS CRS EDN RPEC MHL RP CWS CB ODPM
    PRH MNF HR CRAO TD CME PTCR CF VH MCA VS BRAO PLQ HPED CL""",
)

_colours, _names = count(1), count(1)


def picture(path: Path) -> None:
    """An image unlike any other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = next(_colours)
    pixels = np.full((16, 16, 3), [colour % 251, colour // 251 % 251, 90], dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def table(path: Path, header: list[str], rows: Iterable[Iterable[object]], separator: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(header)
        writer.writerows(rows)


def class_folders(root: Path, names: list[str], *, split: bool = True, each: int = 2, file: str = "{}.jpg") -> None:
    """Folders of classes, in train, val and test or at once."""
    for part in ("train", "val", "test") if split else ("",):
        for name in names:
            for _ in range(each):
                picture(root / part / name / file.format(next(_names)))


def aptos(root: Path) -> None:
    names = [f"{n:012x}" for n in range(30)]
    table(root / "train.csv", ["id_code", "diagnosis"], [(name, n % 5) for n, name in enumerate(names)])
    for name in names:
        picture(root / "train_images" / f"{name}.png")


def idrid(root: Path) -> None:
    base = root / "B. Disease Grading"
    header = ["Image name", "Retinopathy grade", "Risk of macular edema ", "", ""]
    parts = (("a", "Training", "a. Training Set", 15), ("b", "Testing", "b. Testing Set", 10))
    for letter, part, folder, size in parts:
        rows = [(f"IDRiD_{n + 1:03d}", n % 5, n % 3, "", "") for n in range(size)]
        table(base / "2. Groundtruths" / f"{letter}. IDRiD_Disease Grading_{part} Labels.csv", header, rows)
        for name, *_ in rows:
            picture(base / "1. Original Images" / folder / f"{name}.jpg")


def messidor2(root: Path) -> None:
    images = [f"2005_{n:04d}_PP.png" if n % 2 else f"IM{n:06d}.jpg" for n in range(40)]
    rows = [(name, n // 2 % 5, n // 2 % 2, 1) if n != 7 else (name, "", "", 0) for n, name in enumerate(images)]
    header = ["image_id", "adjudicated_dr_grade", "adjudicated_dme", "adjudicated_gradable"]
    table(root / "messidor_data.csv", header, rows)
    table(root / "messidor-2.csv", ["left", "right"], zip(images[::2], images[1::2], strict=True), ";")
    for name in images:
        picture(root / "IMAGES" / name.replace(".jpg", ".JPG"))


def papila(root: Path) -> None:
    for eye in ("OD", "OS"):
        rows = [(f"#{n:03d}", 50 + n, n % 2, (n + (eye == "OS" and n % 4 == 0)) % 3) for n in range(2, 26)]
        header = ["ID", "Age", "Gender", "Diagnosis"]
        table(root / "ClinicalData" / f"patient_data_{eye.lower()}.csv", header, rows)
        for name, *_ in rows:
            picture(root / "FundusImages" / f"RET{name[1:]}{eye}.jpg")


def odir_kaggle(root: Path) -> None:
    header = ["ID", "Patient Age", "Patient Sex", "Left-Fundus", "Right-Fundus"]
    header += ["Left-Diagnostic Keywords", "Right-Diagnostic Keywords", *"NDGCAHMO"]
    header += ["filepath", "labels", "target", "filename"]
    rows = []
    for n in range(40):
        person = [n, 40 + n, ("Female", "Male")[n % 2], f"{n}_left.jpg", f"{n}_right.jpg", f"left {n}", f"right {n}"]
        for side in ("left", "right"):
            code = "NDGCAHMO"[(n + (side == "left")) % 8]
            rows.append([*person, *[0] * 8, "x", f"['{code}']", "[1, 0]", f"{n}_{side}.jpg"])
            picture(root / "preprocessed_images" / f"{n}_{side}.jpg")
    table(root / "full_df.csv", header, rows)


def odir_sheet(root: Path) -> None:
    header = ["ID", "Patient Age", "Patient Sex", "Left-Fundus", "Right-Fundus"]
    header += ["Left-Diagnostic Keywords", "Right-Diagnostic Keywords", *"NDGCAHMO"]
    rows = []
    for n in range(20):
        marks = [int(n % 8 == place or (place == 1 and n % 3 == 0)) for place in range(8)]
        rows.append([n, 60, "Male", f"{n}_left.jpg", f"{n}_right.jpg", "cataract", "normal fundus", *marks])
        for side in ("left", "right"):
            picture(root / "ODIR-5K_Training_Images" / f"{n}_{side}.jpg")
    table(root / "ODIR-5K_Training_Annotations.csv", header, rows)


def _rfmid(places: list[tuple[str, str]]) -> Callable[[Path], None]:
    def draw(root: Path) -> None:
        for part, (file, folder) in enumerate(places):
            rows = []
            for n in range(1, 9):
                marks = [int((n + part) % 2 == 0 and place % 8 in (n - 1, 0)) for place in range(45)]
                rows.append([n, int(any(marks)), *marks])
                picture(root / folder / f"{n}.png")
            table(root / file, ["ID", "Disease_Risk", *RFMID], rows)

    return draw


rfmid_challenge = _rfmid(
    [
        ("Training_Set/RFMiD_Training_Labels.csv", "Training_Set/Training"),
        ("Evaluation_Set/RFMiD_Validation_Labels.csv", "Evaluation_Set/Validation"),
        ("Test_Set/RFMiD_Testing_Labels.csv", "Test_Set/Test"),
    ]
)
rfmid_kaggle = _rfmid(
    [
        ("Training_Set/Training_Set/RFMiD_Training_Labels.csv", "Training_Set/Training_Set/Training"),
        ("Evaluation_Set/Evaluation_Set/RFMiD_Validation_Labels.csv", "Evaluation_Set/Evaluation_Set/Validation"),
        ("Test_Set/Test_Set/RFMiD_Testing_Labels.csv", "Test_Set/Test_Set/Test"),
    ]
)
_ALL = "A. RFMiD_All_Classes_Dataset"
rfmid_dataport = _rfmid(
    [
        (f"{_ALL}/2. Groundtruths/a. RFMiD_Training_Labels.csv", f"{_ALL}/1. Original Images/a. Training Set"),
        (f"{_ALL}/2. Groundtruths/b. RFMiD_Validation_Labels.csv", f"{_ALL}/1. Original Images/b. Validation Set"),
        (f"{_ALL}/2. Groundtruths/c. RFMiD_Testing_Labels.csv", f"{_ALL}/1. Original Images/c. Testing Set"),
    ]
)


def _folders(names: list[str], *, split: bool = True, each: int = 2, below: str = "", file: str = "{}.jpg"):
    return lambda root: class_folders(root / below, names, split=split, each=each, file=file)


_OCTID = ["ANormal", "ARMD", "CSR", "Diabetic_retinopathy", "Macular_Hole"]
_GLAUCOMA = ["normal_control", "early_glaucoma", "advanced_glaucoma"]
_KAGGLE = ["1_normal", "2_cataract", "2_glaucoma", "3_retina_disease"]
_RETINA = ["anormal", "bcataract", "cglaucoma", "ddretina_disease"]
# Shipped task, layout, what draws it, and how many classes of its label, or labels, are in it.
SETS: list[tuple[str, str, Callable[[Path], None], int]] = [
    ("aptos2019", "retfound", _folders(RETINOPATHY), 5),
    ("aptos2019", "official", aptos, 5),
    ("idrid", "retfound", _folders(["anoDR", "bmildDR", "cmoderateDR", "dsevereDR", "eproDR"]), 5),
    ("idrid", "official", idrid, 5),
    ("messidor2", "retfound", _folders(RETINOPATHY), 5),
    ("messidor2", "official", messidor2, 5),
    ("papila", "retfound", _folders(["anormal", "bsuspectglaucoma", "cglaucoma"], file="RET{:03d}OD.jpg"), 3),
    ("papila", "official", papila, 3),
    ("glaucoma_fundus", "retfound", _folders(["anormal_control", "bearly_glaucoma", "cadvanced_glaucoma"]), 3),
    (
        "glaucoma_fundus",
        "official",
        _folders(_GLAUCOMA, split=False, each=8),
        3,
    ),
    ("jsiec1000", "retfound", _folders(JSIEC, each=1), 39),
    ("jsiec1000", "official", _folders(JSIEC, split=False, each=8), 39),
    ("retina", "retfound", _folders(_RETINA), 4),
    (
        "retina",
        "official",
        _folders(_KAGGLE, split=False, each=8, below="dataset"),
        4,
    ),
    ("octid", "retfound", _folders(_OCTID), 5),
    ("octid", "official", _folders(["NORMAL", "ARMD", "CSR", "DR", "MH"], split=False, each=8), 5),
    ("odir5k", "kaggle", odir_kaggle, 8),
    ("odir5k", "sheet", odir_sheet, 8),
    ("rfmid", "challenge", rfmid_challenge, 46),
    ("rfmid", "kaggle", rfmid_kaggle, 46),
    ("rfmid", "dataport", rfmid_dataport, 46),
]
