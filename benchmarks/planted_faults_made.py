"""The files of `planted_faults.py`: phantoms in mixed formats, faults and traps among them, some in archives."""

import csv
import importlib
import io
import os
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = 256
SOURCE = 512  # px
BASE = 48  # phantoms drawn; the others are these, shifted and lit differently
SHARE = 0.02
WITHOUT_OVERRIDE = [  # root reads what it may not, but for this
    *("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"),
]


def _coded(image: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _dicom(image: np.ndarray) -> bytes:
    pydicom: Any = importlib.import_module("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PlanarConfiguration = *image.shape[:2], 3, 0
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = image.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


# suffix, how often of 100, and how it is written: mostly JPEG, as in the world
KINDS: list[tuple[str, int, Callable[[np.ndarray], bytes]]] = [
    (".jpg", 46, lambda image: _coded(image, "JPEG", quality=92)),
    (".jpeg", 12, lambda image: _coded(image, "JPEG", quality=90, progressive=True)),
    (".png", 14, lambda image: _coded(image, "PNG", compress_level=1)),
    (".tif", 8, lambda image: _coded(image, "TIFF", compression="tiff_lzw")),
    (".dcm", 8, _dicom),
    (".webp", 4, lambda image: _coded(image, "WEBP", quality=90, method=0)),
    (".bmp", 3, lambda image: _coded(image, "BMP")),
    (".gif", 2, lambda image: _coded(Image.fromarray(image).quantize(128, method=Image.Quantize.FASTOCTREE), "GIF")),
    ("grey.png", 3, lambda image: _coded(image[:, :, 1].astype(np.uint16) * 16, "PNG", compress_level=1)),
]


def _png_bomb() -> bytes:
    """50,000 x 50,000 pixels of one bit: a third of a gigabyte of zeros in a few hundred kilobytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    line = bytes(1 + 50_000 // 8)
    packed = b"".join([packer.compress(line * 1000) for _ in range(50)]) + packer.flush()
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _jpeg_bomb(image: np.ndarray) -> bytes:
    data = bytearray(_coded(image, "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 50_000, 50_000)
    return bytes(data)


def _nifti(gzipped: bool) -> bytes:
    """A volume of which no voxel is a number."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 16, 16, 16, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 16, 32)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    data = bytes(header) + np.full(16**3, np.nan, "<f4").tobytes()
    if not gzipped:
        return data
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


# Faults: a name, the reason (a pattern), and what is made: bytes of a file with this suffix, or something at a path.
Plant = Callable[[Path, np.ndarray], Path]


def _write(suffix: str, make: Callable[[np.ndarray], bytes]) -> Plant:
    def plant(path: Path, image: np.ndarray) -> Path:
        path = path.with_name(path.name + suffix)
        path.write_bytes(make(image))
        return path

    return plant


def _loop(path: Path, image: np.ndarray) -> Path:
    path, other = path.with_name(path.name + ".png"), path.with_name(path.name + "-other.png")
    path.symlink_to(other.name)
    other.symlink_to(path.name)
    return path


def _folder(path: Path, image: np.ndarray) -> Path:
    path = path.with_name(path.name + ".png")
    path.mkdir()
    return path


def _pipe(path: Path, image: np.ndarray) -> Path:
    path = path.with_name(path.name + ".png")
    os.mkfifo(path)
    return path


def _forbidden(path: Path, image: np.ndarray) -> Path:
    path = path.with_name(path.name + ".jpg")
    path.write_bytes(_coded(image, "JPEG"))
    path.chmod(0)
    return path


def _missing(path: Path, image: np.ndarray) -> Path:
    return path.with_name(path.name + ".jpg")


def _faults() -> list[tuple[str, str, Plant]]:
    bomb = _png_bomb()
    nan = np.full((64, 64), np.nan, np.float32)
    return [
        ("zero bytes", r"is empty \(0 bytes\)", _write(".jpg", lambda image: b"")),
        ("truncated JPEG", "is a truncated JPEG", _write(".jpg", lambda image: _half(_coded(image, "JPEG")))),
        ("truncated PNG", "is a truncated PNG", _write(".png", lambda image: _half(_coded(image, "PNG")))),
        ("truncated TIFF", "is a (truncated|damaged) TIFF", _write(".tif", lambda image: _half(_coded(image, "TIFF")))),
        ("truncated DICOM", "is a truncated DICOM file", _write(".dcm", lambda image: _half(_dicom(image)))),
        ("text called .jpg", "is a text file, not an image", _write(".jpg", lambda image: b"left eye, 2014\n" * 9)),
        ("page called .png", "is a web page", _write(".png", lambda image: b"<!DOCTYPE html><html>not found</html>")),
        ("zeros", "is all zeros, not an image", _write(".tif", lambda image: bytes(70_000))),
        ("PNG bomb", "has more than 178 megapixels", _write(".png", lambda image: bomb)),
        ("JPEG bomb", "has more than 178 megapixels", _write(".jpg", _jpeg_bomb)),
        ("unreadable", r"may not be read \(permission denied\)", _forbidden),
        ("symlink loop", "is a symbolic link that leads in a circle", _loop),
        ("missing", "is missing", _missing),
        ("folder called .png", "is a folder, not an image", _folder),
        ("pipe", "is a pipe or a device, not a file", _pipe),
        ("1 x 1", "is 1 x 1 px: too small", _write(".png", lambda image: _coded(image[:1, :1], "PNG"))),
        ("NaN picture", "has no finite pixel", _write(".tif", lambda image: _coded(nan, "TIFF"))),
        ("NaN volume", "is a NIfTI volume, not an image", _write(".nii", lambda image: _nifti(False))),
        ("packed NaN volume", "is a gzip file, not an image", _write(".nii.gz", lambda image: _nifti(True))),
    ]


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _turned_frames(image: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(np.rot90(image, turn)) for turn in (1, 2)]


def _odd(name: bytes) -> Plant:
    def plant(path: Path, image: np.ndarray) -> Path:
        path = path.with_name(path.name + os.fsdecode(name))
        path.write_bytes(_coded(image, "JPEG"))
        return path

    return plant


def _link(path: Path, image: np.ndarray) -> Path:
    target = path.with_name(path.name + "-target.jpg")
    target.write_bytes(_coded(image, "JPEG"))
    path = path.with_name(path.name + ".jpg")
    path.symlink_to(target.name)
    return path


def _traps() -> list[tuple[str, Plant]]:
    return [
        ("PNG called .jpg", _write(".jpg", lambda image: _coded(image, "PNG", compress_level=1))),
        ("DICOM without suffix", _write("", _dicom)),
        (
            "animated GIF",
            _write(
                ".gif",
                lambda image: _coded(
                    Image.fromarray(image).convert("P"),
                    "GIF",
                    save_all=True,
                    append_images=[frame.convert("P") for frame in _turned_frames(image)],
                ),
            ),
        ),
        (
            "animated WebP",
            _write(
                ".webp",
                lambda image: _coded(image, "WEBP", method=0, save_all=True, append_images=_turned_frames(image)),
            ),
        ),
        ("newline in the name", _odd(b"\nof the left eye.jpg")),
        ("name not UTF-8", _odd(b"-caf\xe9.jpg")),
        ("link to a picture", _link),
    ]


def plant(folder: Path, count: int, seed: int) -> tuple[dict[str, tuple[str, str]], dict[str, str], list[str]]:
    """Write the export and its manifest.

    Returns: the faults' addresses with their kind and reason, the traps' with their kind, and the sound files' paths.
    """
    from maskedclip.data.address import written_name
    from maskedclip.data.phantom import draw_phantom

    rng = np.random.Generator(np.random.Philox(seed))
    base = [draw_phantom(seed, number // 2, ("left", "right")[number % 2], SOURCE).image for number in range(BASE)]
    faults, traps = _faults(), _traps()
    if os.geteuid() == 0 and not can_drop():
        faults = [fault for fault in faults if fault[0] != "unreadable"]
    weights = np.array([weight for _, weight, _ in KINDS]) / 100
    bad, odd = (max(1, round(count * SHARE)) for _ in range(2))
    order = rng.permutation(count)
    role = {int(place): ("fault", number) for number, place in enumerate(order[:bad])}
    role |= {int(place): ("trap", number) for number, place in enumerate(order[bad : bad + odd])}
    planted: dict[str, tuple[str, str]] = {}
    trapped: dict[str, str] = {}
    sound: list[str] = []
    addresses: list[str] = []
    archived: dict[str, list[tuple[str, bytes]]] = {"pacs.zip": [], "camera.tar": [], "old.tar.gz": []}
    for number in range(count):
        image = _varied(base[number % BASE], rng)
        place = folder / "images" / f"{number // 1000:03d}" / f"{number:06d}"
        place.parent.mkdir(parents=True, exist_ok=True)
        kind, which = role.get(number, ("", 0))
        if kind == "fault":
            name, reason, make = faults[which % len(faults)]
            address = written_name(make(place, image).relative_to(folder).as_posix())
            planted[address] = name, reason
        elif kind == "trap":
            name, make = traps[which % len(traps)]
            address = written_name(make(place, image).relative_to(folder).as_posix())
            trapped[address] = name
        else:
            suffix, _, write = KINDS[int(rng.choice(len(KINDS), p=weights))]
            data = write(image)
            if number % 10 == 9:  # every tenth lies in an archive
                archive = list(archived)[number // 10 % 3]
                archived[archive].append((f"eyes/{number:06d}{suffix}", data))
                address = f"{archive}!eyes/{number:06d}{suffix}"
            else:
                address = f"{place.relative_to(folder).as_posix()}{suffix}"
                (folder / address).write_bytes(data)
                sound.append(str(folder / address))
        addresses.append(address)
    _write_archives(folder, archived, planted, addresses)
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient"])
        writer.writerows([address, f"p{number // 2}"] for number, address in enumerate(addresses))
    return planted, trapped, sound


def _varied(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another picture: shifted, and lighter or darker."""
    shifted = np.roll(image, tuple(int(value) for value in rng.integers(-12, 13, 2)), axis=(0, 1))
    light = np.arange(256) * rng.uniform(0.8, 1.1)
    return light.clip(0, 255).astype(np.uint8)[shifted]


def _write_archives(
    folder: Path,
    archived: dict[str, list[tuple[str, bytes]]],
    planted: dict[str, tuple[str, str]],
    addresses: list[str],
) -> None:
    """The three archives, with one more fault each: a locked member, a link, a member that is not there."""
    with zipfile.ZipFile(folder / "pacs.zip", "w") as file:
        for name, data in archived["pacs.zip"]:
            file.writestr(name, data)
        file.writestr("eyes/locked.png", b"x" * 100)
    raw = bytearray((folder / "pacs.zip").read_bytes())
    for mark, flags, name in ((b"PK\x03\x04", 6, 30), (b"PK\x01\x02", 8, 46)):
        place = raw.rfind(mark, 0, raw.rfind(b"eyes/locked.png") if name == 46 else raw.find(b"eyes/locked.png"))
        raw[place + flags] |= 1
    (folder / "pacs.zip").write_bytes(raw)
    for name, mode in (("camera.tar", "w"), ("old.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode, **({"compresslevel": 1} if mode == "w:gz" else {})) as tar:  # type: ignore[call-overload]
            for member, data in archived[name]:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo("eyes/link.png")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    for address, kind, reason in (
        ("pacs.zip!eyes/locked.png", "encrypted member", "is encrypted: unpack the archive with its password first"),
        ("camera.tar!eyes/link.png", "link in an archive", "is a link in the archive"),
        ("old.tar.gz!eyes/none.png", "missing member", "is not in the archive"),
        ("none.zip!eyes/none.png", "missing archive", "is in an archive that is missing"),
    ):
        planted[address] = kind, reason
        addresses.append(address)


def can_drop() -> bool:
    return (
        shutil.which("setpriv") is not None
        and not subprocess.run([*WITHOUT_OVERRIDE, "true"], capture_output=True, check=False).returncode
    )
