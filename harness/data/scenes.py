"""Draw one digit scene: handwritten digits on photo crops or textures, with distractors and occluders.

The digits (1,797, 8x8) and the two photographs come with scikit-learn. Digits and photo halves of the two
splits are disjoint. A scene is drawn back to front; `owner` says which object each pixel shows, so masks
and boxes are those of the visible part, exact to the pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

FIRST_VAL_DIGIT = 1260  # rows of scikit-learn's digits: train below, val from here on
SMALLEST, LARGEST = 10.0, 90.0  # heights of digits in pixels
PHOTO_SHARE, EMPTY_SHARE, CROWD_SHARE = 0.65, 0.02, 0.03
# Letters whose strokes no digit has, as polylines on a 2 x 2 grid (x right, y down).
LETTERS = (
    ((0, 2), (1, 0), (2, 2), None, (0.5, 1.2), (1.5, 1.2)),  # A
    ((2, 0), (0, 0), (0, 2), (2, 2), None, (0, 1), (1.5, 1)),  # E
    ((2, 0), (0, 0), (0, 2), None, (0, 1), (1.5, 1)),  # F
    ((0, 0), (0, 2), None, (2, 0), (2, 2), None, (0, 1), (2, 1)),  # H
    ((0, 0), (0, 2), None, (2, 0), (0, 1), (2, 2)),  # K
    ((0, 2), (0, 0), (1, 1), (2, 0), (2, 2)),  # M
    ((0, 2), (0, 0), (2, 2), (2, 0)),  # N
    ((0, 0), (2, 0), None, (1, 0), (1, 2)),  # T
    ((0, 0), (0, 2), (2, 2), (2, 0)),  # U
    ((0, 0), (0.5, 2), (1, 0.7), (1.5, 2), (2, 0)),  # W
    ((0, 0), (2, 2), None, (2, 0), (0, 2)),  # X
    ((0, 0), (1, 1), (2, 0), None, (1, 1), (1, 2)),  # Y
)


@dataclass(frozen=True)
class Parts:
    """What scenes of one split are made of."""

    digits: np.ndarray  # [N, 8, 8] float32 in [0, 1]
    labels: np.ndarray  # [N] int
    photos: tuple[Image.Image, ...]


@dataclass(frozen=True)
class SceneObject:
    """A digit, or a crowd of digits of one class; `mask` [H, W] bool is its visible part."""

    label: int
    mask: np.ndarray
    crowd: bool


@dataclass(frozen=True)
class Scene:
    """`image` [H, W, 3] uint8 and what is on it."""

    image: np.ndarray
    objects: tuple[SceneObject, ...]


def load_parts(split: Literal["train", "val"]) -> Parts:
    """The split's digits and photo halves (left for train, right for val)."""
    from sklearn.datasets import load_digits, load_sample_images

    data = load_digits()
    rows = slice(0, FIRST_VAL_DIGIT) if split == "train" else slice(FIRST_VAL_DIGIT, None)
    photos = []
    for photo in load_sample_images().images:
        middle = photo.shape[1] // 2
        photos.append(
            Image.fromarray(np.ascontiguousarray(photo[:, :middle] if split == "train" else photo[:, middle:]))
        )
    return Parts((data.images[rows] / 16).astype(np.float32), data.target[rows], tuple(photos))


@dataclass
class _Canvas:
    """The picture so far. `owner` [S, S] int16: index of the object a pixel shows, -1 for none."""

    pixels: np.ndarray
    owner: np.ndarray
    labels: list[int] = field(default_factory=list)
    crowds: list[bool] = field(default_factory=list)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)  # pixels of each object before anything covered it


def draw_scene(rng: np.random.Generator, parts: Parts, size: int, difficulty: float) -> Scene:
    """A scene of `size` x `size` pixels; `difficulty` 0 to 1 lowers contrast and adds occlusion and distractors."""
    background = _photo(rng, parts, size) if rng.random() < PHOTO_SHARE else _texture(rng, size)
    keep = 0.5 + 0.5 * difficulty  # an easy background is flatter
    mean = background.mean((0, 1))
    canvas = _Canvas((background - mean) * keep + mean, np.full((size, size), -1, np.int16))
    kind = rng.random()
    if kind >= 1 - CROWD_SHARE:
        _draw_crowd(rng, canvas, parts, difficulty)
    num_digits = 0 if kind < EMPTY_SHARE else int(rng.integers(2, 9))
    num_letters = int(rng.binomial(5, 0.6 * difficulty))
    todo = np.array([True] * num_digits + [False] * num_letters)
    rng.shuffle(todo)
    for is_digit in todo:
        if is_digit:
            row = int(rng.integers(len(parts.labels)))
            _place(rng, canvas, parts.digits[row], int(parts.labels[row]), difficulty)
        else:
            _place(rng, canvas, _letter(rng), None, difficulty)
    for _ in range(int(rng.binomial(4, 0.6 * difficulty))):
        _draw_stroke(rng, canvas, difficulty)
    noise = rng.standard_normal((size, size, 1), np.float32) * (2 + 7 * difficulty)
    image = np.clip(canvas.pixels + noise, 0, 255).astype(np.uint8)
    objects = (
        SceneObject(label, canvas.owner == index, canvas.crowds[index]) for index, label in enumerate(canvas.labels)
    )
    return Scene(image, tuple(objects))


def _photo(rng: np.random.Generator, parts: Parts, size: int) -> np.ndarray:
    """A square crop of a photo half, resized, perhaps mirrored, its colours changed a little. [S, S, 3] float32."""
    photo = parts.photos[int(rng.integers(len(parts.photos)))]
    side = rng.uniform(90, min(photo.size))
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    crop = photo.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = np.asarray(crop, np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return pixels * rng.uniform(0.75, 1.2, 3).astype(np.float32) + np.float32(rng.uniform(-15, 15))


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise of several scales, or stripes bent by it, between two colours. [S, S, 3] float32."""
    noise = np.zeros((size, size), np.float32)
    for cells, weight in ((3, 0.5), (7, 0.3), (17, 0.15), (41, 0.05)):
        grid = Image.fromarray(rng.random((cells, cells), np.float32))
        noise += weight * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    if rng.random() < 0.4:
        angle, period = rng.uniform(0, np.pi), size / rng.uniform(3, 14)
        y, x = np.mgrid[:size, :size].astype(np.float32)
        phase = (x * np.cos(angle) + y * np.sin(angle)) / period + noise
        noise = (0.5 + 0.5 * np.sin(2 * np.pi * phase)).astype(np.float32)
    first, second = rng.uniform(20, 235, (2, 3)).astype(np.float32)
    return first + (second - first) * np.clip(noise, 0, 1)[..., None]


def _letter(rng: np.random.Generator) -> np.ndarray:
    """A letter in the digits' own resolution, so that only its shape tells it from them. [8, 8] float32."""
    picture = Image.new("L", (64, 64))
    pen = ImageDraw.Draw(picture)
    line: list[tuple[float, float]] = []
    for point in (*LETTERS[int(rng.integers(len(LETTERS)))], None):
        if point is not None:
            line.append((14 + 18 * point[0], 7 + 25 * point[1]))
            continue
        pen.line(line, fill=255, width=9, joint="curve")
        line = []
    small = picture.resize((8, 8), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def _glyph(rng: np.random.Generator, cells: np.ndarray, height: float, difficulty: float) -> np.ndarray:
    """`cells` [8, 8] enlarged to about `height` pixels, rotated, sheared: coverage [h, w] float32 in [0, 1]."""
    angle = np.deg2rad(rng.uniform(-1, 1) * (8 + 17 * difficulty))
    shear = rng.uniform(-1, 1) * (0.1 + 0.2 * difficulty)
    scale = height / 8
    aspect = rng.uniform(0.8, 1.2)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.array([[scale * aspect, shear * scale], [0, scale]])
    corners = matrix @ np.array([[-5, 5, 5, -5], [-5, -5, 5, 5]])  # a ring of empty cells around the 8 x 8
    width, rows = (int(np.ceil(extent)) + 2 for extent in np.ptp(corners, axis=1))
    inverse = np.linalg.inv(matrix)
    offset = np.array([5, 5]) - inverse @ np.array([width / 2, rows / 2])
    coefficients = (*inverse[0], offset[0], *inverse[1], offset[1])
    source = Image.fromarray(np.pad(cells, 1))
    ink = source.transform((width, rows), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    softness = np.clip(1.2 / scale, 0.1, 0.8)  # an edge is about one pixel wide at every size
    return np.clip((np.asarray(ink) - rng.uniform(0.46, 0.6)) / softness + 0.5, 0, 1).astype(np.float32)


def _place(rng: np.random.Generator, canvas: _Canvas, cells: np.ndarray, label: int | None, difficulty: float) -> None:
    """Draw a digit (or a letter: `label` None) where it hides nothing too much; smaller after each failure."""
    size = len(canvas.owner)
    height = float(np.exp(rng.uniform(np.log(SMALLEST), np.log(min(LARGEST, 0.56 * size)))))
    for _ in range(12):
        cover = _glyph(rng, cells, height, difficulty)
        inside = rng.random() >= 0.1 + 0.15 * difficulty
        rows, columns = cover.shape
        slack_y, slack_x = (0.0, 0.0) if inside else (0.35 * rows, 0.35 * columns)
        top = round(rng.uniform(-slack_y, max(size - rows + slack_y, 1 - slack_y)))
        left = round(rng.uniform(-slack_x, max(size - columns + slack_x, 1 - slack_x)))
        clipped = cover[max(-top, 0) : size - top, max(-left, 0) : size - left]
        if (clipped > 0.5).sum() > 0.6 * (cover > 0.5).sum() and _draw(
            rng, canvas, clipped, max(top, 0), max(left, 0), label, difficulty
        ):
            return
        height = max(SMALLEST, 0.85 * height)


def _draw(
    rng: np.random.Generator,
    canvas: _Canvas,
    cover: np.ndarray,
    top: int,
    left: int,
    label: int | None,
    difficulty: float,
) -> bool:
    """Paint `cover` [h, w] at (top, left) unless too much of an earlier object would be hidden."""
    mask = cover > 0.5
    window = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(ys) < 6 or len(xs) < 3:
        return False
    box = (left + int(xs[0]), top + int(ys[0]), left + int(xs[-1]) + 1, top + int(ys[-1]) + 1)
    if any(_shared(box, other) > 0.1 + 0.45 * difficulty for other in canvas.boxes):
        return False
    if _hides_too_much(canvas, mask, window, difficulty):
        return False
    _paint(rng, canvas, cover, mask, window, difficulty)
    canvas.owner[window][mask] = -1 if label is None else len(canvas.labels)
    if label is not None:
        canvas.labels.append(label)
        canvas.crowds.append(False)
        canvas.totals.append(int(mask.sum()))
        canvas.boxes.append(box)
    return True


def _hides_too_much(canvas: _Canvas, mask: np.ndarray, window: tuple[slice, slice], difficulty: float) -> bool:
    """Would `mask` leave less of an object than `difficulty` allows (90 % easy, 60 % hard)?"""
    below = canvas.owner[window][mask]
    for index in np.unique(below[below >= 0]):
        visible = int((canvas.owner == index).sum()) - int((below == index).sum())
        if visible < (0.9 - 0.3 * difficulty) * canvas.totals[index]:
            return True
    return False


def _paint(
    rng: np.random.Generator,
    canvas: _Canvas,
    cover: np.ndarray,
    mask: np.ndarray,
    window: tuple[slice, slice],
    difficulty: float,
) -> None:
    """Blend a colour that stands out from what is below, a little lighter towards one side."""
    area = canvas.pixels[window]
    colour = _colour_against(rng, area[mask].mean(0), difficulty)
    slope = rng.uniform(-18, 18, 2).astype(np.float32)
    rows, columns = cover.shape
    shade = np.linspace(-slope[0], slope[0], rows)[:, None] + np.linspace(-slope[1], slope[1], columns)
    area += cover[..., None] * (colour + shade[..., None].astype(np.float32) - area)


def _colour_against(rng: np.random.Generator, below: np.ndarray, difficulty: float) -> np.ndarray:
    """A random colour whose luminance differs from that of `below` [3] by 43 % (easy) to 17 % (hard)."""
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    wanted = 255 * (0.43 - 0.26 * difficulty)
    for colour in rng.uniform(0, 255, (16, 3)).astype(np.float32):
        if abs(float((colour - below) @ luma)) >= wanted:
            return colour
    return np.full(3, 20 if below @ luma > 127 else 235, np.float32)


def _shared(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> float:
    """Intersection over the smaller box."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / min(areas)


def _draw_crowd(rng: np.random.Generator, canvas: _Canvas, parts: Parts, difficulty: float) -> None:
    """A heap of small digits of one class, annotated as one crowd region."""
    size = len(canvas.owner)
    label = int(rng.integers(10))
    rows = np.flatnonzero(parts.labels == label)
    extent = rng.uniform(0.2, 0.4, 2) * size
    centre = rng.uniform(extent / 2, size - extent / 2)
    union = np.zeros((size, size), bool)
    for _ in range(int(rng.integers(8, 15))):
        cover = _glyph(rng, parts.digits[int(rng.choice(rows))], rng.uniform(10, 17), difficulty)
        top, left = (
            int(np.clip(middle + rng.uniform(-0.5, 0.5) * span - side / 2, 0, size - side))
            for middle, span, side in zip(centre, extent, cover.shape, strict=True)
        )
        window = slice(top, top + cover.shape[0]), slice(left, left + cover.shape[1])
        _paint(rng, canvas, cover, cover > 0.5, window, difficulty)
        union[window] |= cover > 0.5
    canvas.owner[union] = len(canvas.labels)
    canvas.labels.append(label)
    canvas.crowds.append(True)
    canvas.totals.append(int(union.sum()))
    ys, xs = np.flatnonzero(union.any(1)), np.flatnonzero(union.any(0))
    canvas.boxes.append((int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1))


def _draw_stroke(rng: np.random.Generator, canvas: _Canvas, difficulty: float) -> None:
    """A bent line across part of the picture, over everything; left out where it would hide too much."""
    size = len(canvas.owner)
    ends = rng.uniform(0, size, (3, 2))
    ends[2] = ends[0] + (ends[2] - ends[0]) * rng.uniform(0.4, 1)
    times = np.linspace(0, 1, 12)[:, None]
    points = (1 - times) ** 2 * ends[0] + 2 * times * (1 - times) * ends[1] + times**2 * ends[2]
    picture = Image.new("L", (size, size))
    ImageDraw.Draw(picture).line(
        [(float(x), float(y)) for x, y in points], fill=255, width=int(rng.integers(2, 5)), joint="curve"
    )
    cover = np.asarray(picture, np.float32) / 255
    mask = cover > 0.5
    everywhere = slice(None), slice(None)
    if mask.any() and not _hides_too_much(canvas, mask, everywhere, difficulty):
        _paint(rng, canvas, cover, mask, everywhere, difficulty)
        canvas.owner[mask] = -1
