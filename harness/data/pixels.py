"""Pixels of an image file: the one place where they are read, and what a person must know about how.

The network sees RGB of 8 bits per channel. What is stored otherwise is scaled by the range of its type, or converted,
and noted before training (`traits`); what has no range of its own is refused (`refusal`). Pixels are taken as stored:
an EXIF orientation is noted and not applied, since boxes may have been drawn either way. Pillow itself turns TIFFs.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from harness.data.disk import open_file

# what Pillow raises for damaged files, depending on where the damage is
UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, RuntimeError, EOFError, ArithmeticError, AssertionError),
    *(LookupError, TypeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)
CONVERTED = ("1", "L", "P", "PA", "LA", "La", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")
SIXTEEN_BITS = ("PNG", "TIFF", "JPEG2000", "PPM")  # formats whose grey has a range that is known
MODES = {"I": "whole numbers, signed or of 32 bits", "F": "floating point"}
ORIENTATION = 0x0112  # EXIF's tag
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES_PER_PIXEL = 258, 262, 277  # TIFF's tags
LONGEST_EXIF = 1 << 24  # bytes
TRAITS = {  # what images of a kind are, and what becomes of them
    "16-bit grey": ("16-bit grey", "scaled to 8 bits by the type's range, 0 to 65,535"),
    "12-bit grey": ("12-bit grey", "scaled to 8 bits by the type's range, 0 to 4,095"),
    "16-bit colour": ("of 16 bits per channel", "of which the upper 8 are taken"),
    "few bits": ("of fewer than 8 bits per channel", "scaled to 8 bits by the type's range"),
    "transparent": ("partly transparent or with an alpha channel", "which is left out: colours are taken as stored"),
    "more channels": ("of more channels than red, green and blue", "and the others are left out"),
    "CMYK": ("CMYK", "converted to RGB without a colour profile"),
    "YCbCr": ("YCbCr", "converted to RGB"),
    "LAB": ("LAB", "converted to sRGB"),
    "frames": ("of several frames or pages", "of which the first is taken"),
    "turned": ("stored turned, as TIFFs can be", "and turned as the file says"),
}


@contextmanager
def open_image(path: Path | str) -> Iterator[tuple[Image.Image, BufferedReader]]:
    """The image of a regular file, and the file itself; its pixels are not read yet.

    Raises:
        UNREADABLE: one of these; it cannot be opened, or is no image.
    """
    with open_file(path) as stream, Image.open(stream) as image:
        yield image, stream


def read_rgb(path: Path | str) -> np.ndarray:
    """[H, W, 3] uint8, RGB, of an image file.

    Raises:
        UNREADABLE: one of these; it cannot be read, or is refused.
    """
    with open_image(path) as (image, _):
        if trouble := refusal(image):
            raise ValueError(trouble)
        if image.mode in CONVERTED:
            image.load()
            image.info.pop("transparency", None)  # of which Pillow would warn; RGB has none
            return np.asarray(image.convert("RGB"))
        top = grey_range(image)
        inverted = _tiff_tag(image, PHOTOMETRIC, 1) == 0  # white is zero, which Pillow heeds for up to 8 bits only
        grey = np.asarray(image).astype(np.uint32)
        grey = (grey * 255 + top // 2) // top
        grey = (255 - grey if inverted else grey).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)


def refusal(image: Image.Image) -> str:
    """Why an opened image has no pixels of 8 bits, with its mode; empty where it has."""
    if image.mode in CONVERTED or grey_range(image):
        return ""
    words = MODES.get(image.mode, "16-bit grey of unknown sign")
    return f"is of mode {image.mode} ({words}), whose range is not known; store it with 8 or 16 bits per channel"


def grey_range(image: Image.Image) -> int:
    """The largest value of an image's type where it is grey of more than 8 bits; 0 where it is not, or not known."""
    if image.format == "PPM" and image.mode == "I":
        return 65_535  # Pillow has scaled the file's own range to this one
    if image.format not in SIXTEEN_BITS or not image.mode.startswith("I;16"):
        return 0
    return 2 ** _tiff_tag(image, BITS_PER_SAMPLE, 16) - 1


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    """A number that a TIFF states, of several the first; the default in files of other formats."""
    value = image.tag_v2.get(tag, default) if isinstance(image, TiffImageFile) else default
    return int(value[0] if isinstance(value, tuple) else value)


def traits(image: Image.Image, stream: BufferedReader) -> list[str]:
    """What must be noted of an opened image: keys of `TRAITS`, and `orientation N`. Decodes no pixels."""
    found = []
    raw = _raw_mode(image)
    top = grey_range(image)
    if top:
        found.append("12-bit grey" if top == 4095 else "16-bit grey")
    elif ";16" in raw and not raw.startswith("BGR"):
        found.append("16-bit colour")
    elif image.mode == "1" or re.match(r"L;[24]|BGR;1[56]", raw):
        found.append("few bits")
    if image.has_transparency_data:
        found.append("transparent")
    if _tiff_tag(image, SAMPLES_PER_PIXEL, 1) > len(image.getbands()):
        found.append("more channels")
    if image.mode in TRAITS:
        found.append(image.mode)
    if image.format != "PSD" and getattr(image, "is_animated", False):  # Photoshop's layers are one picture
        found.append("frames")
    if orientation := _orientation(image, stream):
        found.append("turned" if image.format == "TIFF" else f"orientation {orientation}")
    return found


def _raw_mode(image: Image.Image) -> str:
    """How Pillow says that the file holds its pixels, such as `RGB;16B`; the mode where it does not say."""
    args = image.tile[0].args if isinstance(image, ImageFile.ImageFile) and image.tile else None
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else image.mode


def _orientation(image: Image.Image, stream: BufferedReader) -> int:
    """EXIF's orientation, 2 to 8; 0 where there is none, or one that turns nothing."""
    try:
        if image.format == "PNG" and "exif" not in image.info and (late := _late_exif(stream)):
            exif = Image.Exif()
            exif.load(late)
        else:  # not PNG's own method, which decodes the image to see what comes after its pixels
            exif = Image.Image.getexif(image)
        value = exif.get(ORIENTATION)
    except Exception:  # EXIF can be damaged in any way, and viewers then show the pixels as stored
        return 0
    return value if isinstance(value, int) and 2 <= value <= 8 else 0


def _late_exif(stream: BufferedReader) -> bytes:
    """EXIF that a PNG holds after its pixels; empty where it holds none."""
    file, place = stream.fileno(), 8
    while len(head := os.pread(file, 8, place)) == 8:
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf" and length < LONGEST_EXIF:
            return os.pread(file, length, place + 8)
        if head[4:] == b"IEND":
            break
        place += 12 + length
    return b""
