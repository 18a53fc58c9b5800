"""Damaged files by the thousand: none may crash the reader, hang it for 5 s, or take memory without bound.

python benchmarks/fuzz.py --files 20000      # some minutes on one core; prints a table for RESULTS.md
python benchmarks/fuzz.py --show 4711        # one file of that run again: its bytes, and what came of it

Every file is a function of its number and the seed: a sound picture, DICOM, archive, volume, CSV, JSON lines or Parquet
file that is cut, spliced, overwritten and repeated.  A process of its own reads them, with a limit on its memory; what
ends it, or keeps it longer than 5 s, is counted and shown, and the next file goes to a new one.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import resource
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 5.0
MEMORY = 3 << 30  # bytes on top of what the libraries take: the largest picture within the limit needs about two
SMALL = 100_000  # bytes: seeds above it only cost time


@dataclass(frozen=True)
class Seed:
    """A sound file to be damaged."""

    kind: str  # image, dicom, archive, volume, manifest
    name: str
    data: bytes


def _picture(height: int = 40, width: int = 56) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    noise = np.random.Generator(np.random.Philox(7)).integers(0, 30, (height, width))
    return np.stack([4 * x + noise // 2, 5 * y, 200 - 2 * x + noise], axis=2).clip(0, 255).astype(np.uint8)


def _image_seeds() -> list[Seed]:
    from PIL import Image

    rgb = Image.fromarray(_picture())
    deep = Image.fromarray(_picture()[:, :, 0].astype(np.uint16) * 13)
    exif = Image.Exif()
    exif[0x0112] = 6
    wanted: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", rgb, {}),
        ("JPEG", rgb, {"progressive": True, "exif": exif}),
        ("JPEG", rgb.convert("CMYK"), {}),
        ("JPEG", rgb.convert("L"), {}),
        ("PNG", rgb, {}),
        ("PNG", rgb.convert("P"), {"transparency": 3}),
        ("PNG", rgb.convert("RGBA"), {}),
        ("PNG", deep, {}),
        ("PNG", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ("TIFF", rgb, {}),
        ("TIFF", rgb, {"compression": "tiff_lzw"}),
        ("TIFF", rgb, {"compression": "tiff_adobe_deflate", "save_all": True, "append_images": [rgb]}),
        ("TIFF", rgb, {"compression": "jpeg"}),
        ("TIFF", deep, {}),
        ("TIFF", rgb.convert("1"), {"compression": "group4"}),
        ("TIFF", Image.fromarray(np.linspace(0, 1, 2240, dtype=np.float32).reshape(40, 56)), {}),
        ("BMP", rgb, {}),
        ("BMP", rgb.convert("P"), {}),
        ("WEBP", rgb, {}),
        ("WEBP", rgb, {"lossless": True, "save_all": True, "append_images": [rgb.rotate(90)]}),
        ("GIF", rgb.convert("P"), {"save_all": True, "append_images": [rgb.rotate(90).convert("P")]}),
        ("PPM", rgb, {}),
        ("JPEG2000", rgb, {}),
        ("AVIF", rgb, {}),
    ]
    seeds = []
    for kind, picture, options in wanted:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        seeds.append(Seed("image", f"a.{kind.lower()}", buffer.getvalue()))
    for dtype in ("f2", "f8", "i2"):  # what Pillow leaves to tifffile
        seeds.append(Seed("image", "rare.tif", _tiff(np.linspace(0, 99, 2240).reshape(40, 56).astype(dtype))))
    return seeds


def _tiff(grey: np.ndarray) -> bytes:
    """A plain TIFF of one strip, little endian."""
    height, width = grey.shape
    sample_format = {"u": 1, "i": 2, "f": 3}[grey.dtype.kind]
    tags = [
        (256, width),
        (257, height),
        (258, 8 * grey.itemsize),
        (259, 1),
        (262, 1),
        (273, 0),
        (277, 1),
        (278, height),
    ]
    tags += [(279, grey.nbytes), (339, sample_format)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + grey.tobytes()


def _dicom_seeds() -> list[Seed]:
    """The small files of pydicom's own collections; none where pydicom is not installed."""
    try:
        import pydicom.data
    except ImportError:
        return []
    folder = Path(str(pydicom.data.__file__)).parent
    files = sorted(path for part in ("test_files", "charset_files") for path in (folder / part).rglob("*.dcm"))
    return [Seed("dicom", path.name, path.read_bytes()) for path in files if path.stat().st_size < SMALL]


def _archive_seeds() -> list[Seed]:
    files = {f"eyes/{place}{Path(seed.name).suffix}": seed.data for place, seed in enumerate(_image_seeds()[:5])}
    seeds = []
    for packed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", packed) as file:
            for name, data in files.items():
                file.writestr(zipfile.ZipInfo(name), data, packed)
        seeds.append(Seed("archive", "a.zip", buffer.getvalue()))
    for mode, name in (("w", "a.tar"), ("w:gz", "a.tar.gz"), ("w:xz", "a.tar.xz")):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
            for member, data in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        seeds.append(Seed("archive", name, buffer.getvalue()))
    return seeds


def _volume_seeds() -> list[Seed]:
    try:
        import nibabel
    except ImportError:
        return []
    voxels = np.random.Generator(np.random.Philox(3)).integers(0, 900, (12, 14, 10)).astype(np.int16)
    plain = nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])).to_bytes()
    import gzip

    return [Seed("volume", "a.nii", plain), Seed("volume", "a.nii.gz", gzip.compress(plain, mtime=0))]


def _manifest_seeds() -> list[Seed]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "image": f"images/{place}.png",
            "text": ["normal fundus", "", 'drusen, "soft"', "Ödem"][place % 4],
            "patient": f"p{place // 2}",
            "split": ["train", "val", "test"][place // 2 % 3],
            "label.dr": place % 5,
            "mask.disc": f"masks/{place}.png",
        }
        for place in range(24)
    ]
    header = ",".join(rows[0])
    lines = [",".join(f'"{str(value).replace(chr(34), chr(34) * 2)}"' for value in row.values()) for row in rows]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=10)
    return [
        Seed("manifest", "m.csv", "\n".join([header, *lines]).encode()),
        Seed("manifest", "m.tsv", "\r\n".join(line.replace(",", "\t") for line in [header, *lines]).encode("utf-16")),
        Seed("manifest", "m.jsonl", "\n".join(json.dumps(row) for row in rows).encode()),
        Seed("manifest", "m.parquet", buffer.getvalue()),
    ]


@cache
def all_seeds() -> dict[str, list[Seed]]:
    """Sound files by kind; a kind whose library is missing has none."""
    made = [*_image_seeds(), *_dicom_seeds(), *_archive_seeds(), *_volume_seeds(), *_manifest_seeds()]
    return {kind: [seed for seed in made if seed.kind == kind] for kind in SHARES}


SHARES = {"image": 0.45, "dicom": 0.2, "archive": 0.08, "volume": 0.07, "manifest": 0.2}
_ODD = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0", b"\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f")
_ODD_TEXT = (b'"', b"\n", b",", b"\t", b"\r", b"\xe9", b"\xef\xbb\xbf", b"nan", b"1e999", b"../", b"\\", b"{", b"null")


def damaged(number: int, seed: int = 0) -> Seed:
    """File `number` of a run: a sound one with one to six faults."""
    rng = np.random.Generator(np.random.Philox(key=np.asarray([seed, number], np.uint64)))
    seeds = {kind: made for kind, made in all_seeds().items() if made}
    weights = np.array([SHARES[kind] for kind in seeds])
    kind = list(seeds)[int(rng.choice(len(seeds), p=weights / weights.sum()))]
    chosen = seeds[kind][int(rng.integers(len(seeds[kind])))]
    data = bytearray(chosen.data)
    for _ in range(int(rng.integers(1, 7))):
        data = _fault(data, rng, seeds[kind], text=kind == "manifest")
    if data[:4] == b"\x89PNG" and number % 2:
        data = _with_sums(data)
    return Seed(kind, chosen.name, bytes(data))


def _with_sums(data: bytearray) -> bytearray:
    """A PNG whose check sums are right again, so that the faults reach the decoder."""
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + struct.unpack_from(">I", data, place)[0]
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return data


def _fault(data: bytearray, rng: np.random.Generator, others: list[Seed], *, text: bool) -> bytearray:
    size = len(data)
    if not size:
        return bytearray(b"\0")
    where = int(rng.integers(3))  # the head, where the sizes are; the tail, where directories are; anywhere
    reach = min(size, 600)
    place = int(rng.integers(reach)) if where == 0 else size - 1 - int(rng.integers(reach if where == 1 else size))
    length = int(rng.integers(1, 65))
    fault = int(rng.integers(8))
    if fault <= 1:
        data[place] ^= 1 << int(rng.integers(8))
    elif fault == 2:
        data[place] = int(rng.integers(256))
    elif fault == 3:
        odd = (*_ODD, *_ODD_TEXT) if text else _ODD
        piece = odd[int(rng.integers(len(odd)))]
        data[place : place + len(piece)] = piece
    elif fault == 4:
        del data[place : place + length]
    elif fault == 5:
        data[place:place] = data[place : place + length] * int(rng.integers(1, 4))
    elif fault == 6:
        other = others[int(rng.integers(len(others)))].data
        start = int(rng.integers(len(other)))
        data[place : place + length] = other[start : start + length]
    elif int(rng.integers(4)) == 0:  # rarer: it hides the other faults behind one reason
        del data[place:]
    else:
        data[place : place + length] = rng.bytes(length)
    return data


def read(file: Seed, folder: Path) -> str:
    """Read a file as curation would: 'read', or the reason why not.  Whatever else is raised is a fault of ours."""
    from maskedclip.data.archives import list_members, read_member
    from maskedclip.data.imaging import UndecodableImage, decode
    from maskedclip.data.manifest import read_manifest
    from maskedclip.errors import UserError

    try:
        if file.kind in ("image", "dicom"):
            assert decode(file.data, name=file.name).dtype == np.uint8
            return "read"
        path = folder / file.name
        path.write_bytes(file.data)
        if file.kind == "manifest":
            read_manifest(path)
        elif file.kind == "archive":
            for address in list_members(path, (".png", ".jpeg")):
                with contextlib.suppress(UndecodableImage):  # the others may be sound
                    decode(read_member(str(path), address.split("!", 1)[1]))
        else:
            from maskedclip.data.volumes import open_volume

            volume = open_volume(path)
            volume.shown()(volume.values(2, 0))
        return "read"
    except UndecodableImage as error:
        reason = str(error)
    except UserError as error:
        return str(error).splitlines()[0].replace(str(folder), "").lstrip("/")
    assert "\n" not in reason, f"a reason is one line, not {reason}"
    return reason


def _worker(numbers: list[int], seed: int, pipe: Any) -> None:
    """Read files and tell of each: (number, kind, outcome, fault, seconds, peak in bytes)."""
    with tempfile.TemporaryDirectory() as folder:
        read(Seed("image", "a.png", all_seeds()["image"][4].data), Path(folder))  # libraries are loaded before limits
        read(all_seeds()["manifest"][0], Path(folder))
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
        pipe.send(None)
        for number in numbers:
            file = damaged(number, seed)
            began = time.perf_counter()
            try:
                outcome, fault = read(file, Path(folder)), ""
            except BaseException:
                outcome, fault = "", traceback.format_exc()
            seconds = time.perf_counter() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            pipe.send((number, f"{file.kind} {Path(file.name).suffix}", outcome, fault, seconds, peak))


def run(numbers: list[int], seed: int, *, told: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
    """Read the files of a run; see `main` for what is returned."""
    context = multiprocessing.get_context("spawn")
    results: list[tuple[int, str, str, str, float, int]] = []
    broken: list[tuple[int, str]] = []
    left = list(numbers)
    while left:
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(left, seed, theirs))
        process.start()
        theirs.close()
        wait = 120.0  # until the libraries are loaded
        while left:
            try:
                if not ours.poll(wait):
                    broken.append((left[0], f"hung for more than {SECONDS:g} s"))
                    break
                result = ours.recv()
            except EOFError:
                process.join()
                broken.append((left[0], f"ended the process (exit status {process.exitcode})"))
                break
            wait = SECONDS + 1
            if result is not None:
                results.append(result)
                left = left[1:]
                told(len(results))
        else:
            process.join()
            continue
        process.kill()
        process.join()
        left = left[1:]
    faults = [(number, fault.strip().splitlines()[-1]) for number, _, _, fault, _, _ in results if fault]
    faults += [(number, f"took {seconds:.1f} s") for number, _, _, _, seconds, _ in results if seconds > SECONDS] + [
        (number, outcome) for number, _, outcome, _, _, _ in results if "more memory than there is" in outcome
    ]
    return {
        "files": len(results) + len(broken),
        "read": Counter(kind for _, kind, outcome, _, _, _ in results if outcome == "read"),
        "refused": Counter(kind for _, kind, outcome, fault, _, _ in results if outcome != "read" and not fault),
        "slowest": max((seconds, number) for number, _, _, _, seconds, _ in results),
        "peak": max(peak for *_, peak in results),
        "faults": sorted(broken + faults),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=None, metavar="NUMBER", help="only this file, with its traceback")
    parser.add_argument("--save", type=Path, default=None, metavar="FILE", help="with --show: where its bytes go")
    args = parser.parse_args()
    if args.show is not None:
        file = damaged(args.show, args.seed)
        print(file.kind, file.name, f"{len(file.data):,} bytes")
        if args.save:
            args.save.write_bytes(file.data)
        with tempfile.TemporaryDirectory() as folder:
            print(read(file, Path(folder)))
        return
    began = time.perf_counter()
    numbers = list(range(args.first, args.first + args.files))

    def told(done: int) -> None:
        if done % 1000 == 0:
            print(f"{done:,} files, {done / (time.perf_counter() - began):.0f} a second", file=sys.stderr, flush=True)

    found = run(numbers, args.seed, told=told)
    print("| kind | read all the same | refused with a reason |\n|---|---|---|")
    for kind in sorted(found["read"] | found["refused"]):
        print(f"| {kind} | {found['read'][kind]:,} | {found['refused'][kind]:,} |")
    seconds, slowest = found["slowest"]
    print(
        f"{found['files']:,} files in {time.perf_counter() - began:.0f} s; slowest {seconds:.2f} s (file {slowest}); "
        f"peak of a process {found['peak'] / 1e6:,.0f} MB; {len(found['faults'])} faults"
    )
    for number, fault in found["faults"]:
        print(f"file {number}: {fault}")
    sys.exit(1 if found["faults"] else 0)


if __name__ == "__main__":
    main()
