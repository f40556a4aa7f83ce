"""Images of every kind: scaled, taken as they are with a note, or refused; eight bits are read as Pillow reads them."""

from __future__ import annotations

import io
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data import pixels
from harness.data.coco import CocoDataset
from harness.errors import UserError
from tests.support.folders import write_folder

COLOUR = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)  # the size of image 30, which has no object
GREY = COLOUR[:, :, 0]
DEEP = GREY.astype(np.uint16) * 257  # the whole range of 16 bits
RGB = Image.fromarray(COLOUR)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("whole") / "set")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "set")


def use(folder: Path, name: str) -> Path:
    """Name this file as image 30, and return its path for the file to be written."""
    annotations = folder / "annotations" / "instances_train.json"
    annotations.write_text(annotations.read_text().replace("30.jpg", name))
    return folder / "train" / name


def opened(folder: Path) -> tuple[CocoDataset, list[str]]:
    """The train split, and its notes."""
    said: list[str] = []
    return CocoDataset(folder, "train", progress=said.append), said


def by_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def tiff(
    content: bytes, bits: int, samples: int = 1, *, order: str = "<", photometric: int = 1, sample_format: int = 1
) -> bytes:
    """An uncompressed TIFF of 80x80 pixels, of kinds that Pillow reads and cannot write."""
    tags = {256: 80, 257: 80, 258: bits, 259: 1, 262: photometric, 277: samples, 278: 80, 279: len(content)}
    tags |= {339: sample_format} | ({338: 0} if samples > 3 else {})
    end = 8 + 2 + 12 * (len(tags) + 1) + 4  # of the directory: there, the bits of each sample
    tags |= {273: end + 4 * samples} | ({258: end} if samples > 1 else {})
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    for tag, value in sorted(tags.items()):
        head += struct.pack(f"{order}HHII", tag, 4, samples if tag == 258 else 1, value)
    return head + bytes(4) + struct.pack(f"{order}{samples}I", *[bits] * samples) + content


def twelve_bits(values: np.ndarray) -> bytes:
    """Two values of 12 bits in three bytes."""
    first, second = values.astype(np.uint32).reshape(-1, 2).T
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()


# ---- more than eight bits -----------------------------------------------------------------------------------------


def pgm(values: np.ndarray, top: int) -> bytes:
    return b"P5\n80 80\n%d\n" % top + values.astype(">u2").tobytes()


SCALED = {
    "png": lambda path: Image.fromarray(DEEP).save(path),
    "tif": lambda path: Image.fromarray(DEEP).save(path),
    "lzw.tif": lambda path: Image.fromarray(DEEP).save(path, compression="tiff_lzw"),
    "big-endian.tif": lambda path: path.write_bytes(tiff(DEEP.astype(">u2").tobytes(), 16, order=">")),
    "white-is-zero.tif": lambda path: path.write_bytes(tiff((65535 - DEEP).tobytes(), 16, photometric=0)),
    "12-bit.tif": lambda path: path.write_bytes(tiff(twelve_bits(np.rint(GREY * (4095 / 255))), 12)),
    "jp2": lambda path: Image.fromarray(DEEP).save(path),
    "pgm": lambda path: path.write_bytes(pgm(DEEP, 65535)),
    "12-bit.pgm": lambda path: path.write_bytes(pgm(np.rint(GREY * (4095 / 255)), 4095)),
}


@pytest.mark.parametrize("name", SCALED)
def test_deep_grey_is_scaled_by_the_range_of_its_type_and_noted(folder, name):
    SCALED[name](use(folder, f"deep.{name}"))
    data, said = opened(folder)
    assert np.array_equal(data.load_image(2), np.repeat(GREY[:, :, None], 3, 2))
    kind, top = ("12-bit", "4,095") if name == "12-bit.tif" else ("16-bit", "65,535")
    [line] = said
    assert line == (
        f"note: {folder / 'train'}: 1 image is {kind} grey (deep.{name}), "
        f"scaled to 8 bits by the type's range, 0 to {top}"
    )


def test_a_sixteenth_of_the_range_is_dark_not_white(folder):
    Image.fromarray(np.full((80, 80), 4095, np.uint16)).save(use(folder, "deep.png"))
    assert np.unique(opened(folder)[0].load_image(2)).tolist() == [16]


def test_sixteen_bits_per_colour_keep_their_upper_eight(folder):
    values = np.arange(80 * 80 * 3, dtype=np.uint16) * 3
    use(folder, "deep.tif").write_bytes(tiff(values.tobytes(), 16, 3, photometric=2))
    data, [line] = opened(folder)
    assert np.array_equal(data.load_image(2).ravel(), values >> 8)
    assert "1 image is of 16 bits per channel (deep.tif), of which the upper 8 are taken" in line


REFUSED = {
    "float.tif": (lambda path: Image.fromarray(GREY.astype(np.float32)).save(path), "mode F (floating point)"),
    "int.tif": (lambda path: Image.fromarray(GREY.astype(np.int32)).save(path), "mode I (whole numbers"),
    "signed.tif": (lambda path: path.write_bytes(tiff(DEEP.tobytes(), 16, sample_format=2)), "mode I (whole numbers"),
    "float.pfm": (lambda path: Image.fromarray(GREY.astype(np.float32)).save(path), "mode F (floating point)"),
    "five.tif": (
        lambda path: path.write_bytes(tiff(bytes(80 * 80 * 7), 8, 7, photometric=2)),
        "cannot be read (a damaged TIFF, or one of a kind (channels, bits) that Pillow does not read); store it as PNG",
    ),
    "sky.hdr": (lambda path: path.write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n"), "a Radiance HDR"),
    "12-bit.jpg": (lambda path: path.write_bytes(jpeg_of_12_bits()), "a damaged JPEG, or one of a kind (12-bit"),
    "float.fits": (lambda path: path.write_bytes(fits(16)), "mode I;16 (16-bit grey of unknown sign)"),
}


def jpeg_of_12_bits() -> bytes:
    """A JPEG whose header says 12 bits."""
    stream = io.BytesIO()
    RGB.save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    content[content.index(b"\xff\xc0") + 4] = 12
    return bytes(content)


def fits(bits: int) -> bytes:
    cards = ["SIMPLE  = T", f"BITPIX  = {bits}", "NAXIS   = 2", "NAXIS1  = 80", "NAXIS2  = 80", "END"]
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2 * 80 * 80)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_range_is_refused_before_training(folder, name):
    write, said = REFUSED[name]
    write(use(folder, name))
    with pytest.raises(UserError) as caught:
        opened(folder)
    assert f"image 30 ({name}) " in str(caught.value) and said in str(caught.value) and "store it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_deep_image_that_came_after_the_check_is_refused_too(folder):
    RGB.save(use(folder, "x.tif"))
    data, _ = opened(folder)
    Image.fromarray(GREY.astype(np.float32)).save(folder / "train" / "x.tif")
    with pytest.raises(UserError, match=r"x.tif: image 30 cannot be read: is of mode F"):
        data.load_image(2)
    Image.new("RGB", (40, 80)).save(folder / "train" / "x.tif")
    with pytest.raises(UserError, match=r"x.tif: image 30 has another size"):
        data.load_image(2)


# ---- eight bits and fewer -----------------------------------------------------------------------------------------


def frames(path: Path) -> None:
    RGB.save(path, save_all=True, append_images=[Image.new("RGB", (80, 80), "red")])


def mpo(path: Path) -> None:
    RGB.save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 40), "red")])


NOTED = {
    "plain.png": (RGB.save, None),
    "plain.jpg": (RGB.save, None),
    "plain.bmp": (RGB.save, None),
    "plain.webp": (RGB.save, None),
    "plain.ppm": (RGB.save, None),
    "plain.tif": (RGB.save, None),
    "grey.png": (RGB.convert("L").save, None),
    "palette.png": (RGB.convert("P").save, None),
    "palette.gif": (RGB.convert("P").save, None),
    "bits.png": (RGB.convert("1").save, "of fewer than 8 bits per channel (bits.png), scaled to 8 bits"),
    "two.png": (lambda path: path.write_bytes(png_of_2_bits()), "of fewer than 8 bits per channel (two.png)"),
    "four.tif": (
        lambda path: path.write_bytes(tiff(GREY.tobytes()[: 80 * 40], 4)),
        "of fewer than 8 bits per channel (four.tif)",
    ),
    "holes.png": (lambda path: RGB.convert("P").save(path, transparency=b"\x00\x80"), "partly transparent"),
    "key.png": (lambda path: RGB.save(path, transparency=(1, 2, 3)), "partly transparent"),
    "grey-alpha.png": (RGB.convert("LA").save, "with an alpha channel"),
    "alpha.webp": (lambda path: with_alpha().save(path, lossless=True), "with an alpha channel"),
    "cmyk.jpg": (RGB.convert("CMYK").save, "CMYK (cmyk.jpg), converted to RGB without a colour profile"),
    "cmyk.tif": (RGB.convert("CMYK").save, "CMYK (cmyk.tif)"),
    "ycc.tif": (RGB.convert("YCbCr").save, "YCbCr (ycc.tif), converted to RGB"),
    "lab.tif": (RGB.convert("LAB").save, "LAB (lab.tif), converted to sRGB"),
    "infrared.tif": (
        lambda path: path.write_bytes(tiff(COLOUR.tobytes() + GREY.tobytes(), 8, 4, photometric=2)),
        "more channels than red, green and blue (infrared.tif), and the others are left out",
    ),
    "moving.gif": (frames, "of several frames or pages (moving.gif), of which the first is taken"),
    "moving.png": (frames, "of several frames or pages"),
    "moving.webp": (frames, "of several frames or pages"),
    "pages.tif": (frames, "of several frames or pages"),
    "telephone.jpg": (mpo, "of several frames or pages"),
}


def with_alpha() -> Image.Image:
    image = RGB.copy()
    image.putalpha(Image.fromarray(GREY))
    return image


NOTED["alpha.png"] = (lambda path: with_alpha().save(path), "with an alpha channel")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_2_bits() -> bytes:
    rows = b"".join(b"\0" + row.tobytes()[:20] for row in GREY)
    head = struct.pack(">IIBBBBB", 80, 80, 2, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", NOTED)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_eight_bits_are_read_as_pillow_reads_them_with_a_note_where_something_is_lost(folder, name):
    write, said = NOTED[name]
    path = use(folder, name)
    write(path)
    data, notes = opened(folder)
    assert np.array_equal(data.load_image(2), by_pillow(path)) and data.load_image(2).dtype == np.uint8
    assert [note for note in notes if said and said in note] == notes and len(notes) == (said is not None)


def test_reading_a_palette_with_transparency_warns_nobody(tmp_path, recwarn):
    RGB.convert("P").save(tmp_path / "x.png", transparency=b"\x00\x80")
    pixels.read_rgb(tmp_path / "x.png")
    assert not recwarn


def test_images_of_a_kind_are_counted_in_one_line(folder):
    annotations = folder / "annotations" / "instances_train.json"
    annotations.write_text(re.sub(r"(\d0)\.jpg", r"\1.png", annotations.read_text()))
    for path in (folder / "train").iterdir():
        with Image.open(path) as image:
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path.with_suffix(".png"))
    said = [note for note in opened(folder)[1] if "16-bit" in note]
    assert len(said) == 1 and "4 images are 16-bit grey (10.png, 20.png, 30.png, …), scaled" in said[0]
    assert opened(folder)[1] == opened(folder)[1] != [], "what is remembered is noted again"


# ---- orientation --------------------------------------------------------------------------------------------------


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[pixels.ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_orientation_that_keeps_the_sides_is_noted_and_pixels_stay_as_stored(folder, suffix, orientation):
    path = use(folder, f"x.{suffix}")
    RGB.save(path, exif=turned(orientation))
    data, [line] = opened(folder)
    assert f"1 image has an EXIF orientation (x.{suffix}: {orientation}); pixels are taken as stored: if boxes" in line
    assert np.array_equal(data.load_image(2), by_pillow(path))


@pytest.mark.parametrize("orientation", [1, 0, 9, 77])
def test_an_orientation_that_turns_nothing_is_none(folder, orientation):
    RGB.save(use(folder, "x.jpg"), exif=turned(orientation))
    assert opened(folder)[1] == []


def test_an_orientation_after_the_pixels_of_a_png(folder):
    path = use(folder, "x.png")
    RGB.save(path)
    late = turned(6).tobytes().removeprefix(b"Exif\0\0")
    end = chunk(b"IEND", b"")
    path.write_bytes(path.read_bytes().removesuffix(end) + chunk(b"eXIf", late) + end)
    [line] = opened(folder)[1]
    assert "an EXIF orientation (x.png: 6)" in line


def test_an_orientation_of_a_telephones_several_images(folder):
    RGB.save(use(folder, "x.jpg"), "MPO", save_all=True, append_images=[RGB], exif=turned(8))
    said = opened(folder)[1]
    assert len(said) == 2 and any("(x.jpg: 8)" in line for line in said)


@pytest.mark.parametrize("exif", [b"II*\0\xff\xff\xff\xff", b"", b"MM\0*\0\0\0\x08\0\x01\x01\x12"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_no_orientation(folder, exif):
    RGB.save(use(folder, "x.jpg"), exif=b"Exif\0\0" + exif)
    assert opened(folder)[1] == []


def test_sides_tell_which_way_the_boxes_were_drawn(folder):
    """Annotated as stored: noted. As shown: refused, and with no orientation to blame both ways out are told."""
    path = folder / "train" / "20.jpg"
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=turned(6))
    [line] = opened(folder)[1]
    assert line.endswith("(20.jpg: 6); pixels are taken as stored, as the annotated sides are")
    annotations = folder / "annotations" / "instances_train.json"
    text = annotations.read_text()
    annotations.write_text(text.replace('"height": 96, "width": 64', '"height": 64, "width": 96'))
    with pytest.raises(UserError, match="as its EXIF orientation shows it: store the image upright"):
        opened(folder)
    image.save(path)
    with pytest.raises(UserError, match="exchange the two there if they are mixed up, or store the image upright"):
        opened(folder)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_tiff_is_turned_as_it_says(folder, orientation):
    use(folder, "x.tif")
    RGB.save(folder / "train" / "x.tif", exif=turned(orientation))
    data, [line] = opened(folder)
    assert line.endswith("1 image is stored turned, as TIFFs can be (x.tif), and turned as the file says")
    ways = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    ways |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    shown = np.asarray(RGB.transpose(Image.Transpose[ways[orientation]]))
    assert np.array_equal(data.load_image(2), shown)


# ---- one way to read ----------------------------------------------------------------------------------------------


def test_images_are_opened_in_one_room():
    root = Path(__file__).parents[1] / "harness"
    rooms = [path.name for path in root.rglob("*.py") if "Image.open(" in path.read_text()]
    assert rooms == ["pixels.py"]
