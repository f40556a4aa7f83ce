"""Made-up tables of the analysis, of the form that trials leave, for the tests of figures."""

from __future__ import annotations

from typing import Any

import numpy as np

HEADS = ("decoder", "atss", "faster_rcnn", "paa", "gfl", "fcos", "retinanet")


def discriminability(power: float, *, attention: bool = True) -> dict[str, Any]:
    """Curves IoF = IoB ** (1 / power): the area is power / (power + 1)."""
    thresholds = np.linspace(0, 1, 101)
    iob = 1 - thresholds
    area = power / (power + 1)
    curve = {
        "iof": (iob ** (1 / power)).tolist(),
        "iob": iob.tolist(),
        "auc": area,
        "interval": [area - 0.01, area + 0.02],
    }
    table = {"kind": "discriminability", "thresholds": thresholds.tolist(), "encoder": curve}
    return {**table, "attention": curve if attention else None}


def conflict(num_auxiliary: int, level: float = 0.01, heads: tuple[str, ...] = HEADS) -> dict[str, Any]:
    """S_ij = level · (1 + (2i + j) / 10) between the decoder and the first auxiliary heads."""
    names = list(heads[: num_auxiliary + 1])
    size = range(len(names))
    matrix = [[0.0 if i == j else level * (1 + (2 * i + j) / 10) for j in size] for i in size]
    means = {
        name: np.mean([matrix[i][j] + matrix[j][i] for j in size if j != i]) / 2
        for i, name in enumerate(names)
        if num_auxiliary
    }
    summary = {
        name: {"value": float(mean), "low": 0.9 * float(mean), "high": 1.1 * float(mean)}
        for name, mean in means.items()
    }
    anchors = {"ceiling": None, "floor": None}
    if num_auxiliary:
        anchors = {
            "ceiling": {"value": 0.04, "low": 0.038, "high": 0.043},
            "floor": {"value": 0.002, "low": 0.0018, "high": 0.0023},
        }
    return {"kind": "conflict", "variant": "cam-v1", "heads": names, "matrix": matrix, "distance": summary, **anchors}


def gradient(*heads: str, level: float = 0.2) -> dict[str, Any]:
    """Cosines that fall from head to head, at the encoder's output and twice that at the parameters."""
    names, size = ["decoder", *heads], range(len(heads) + 1)

    def at(factor: float) -> dict[str, Any]:
        matrix = [[1.0 if i == j else factor * (level - 0.1 * (i + j - 1)) for j in size] for i in size]
        low, high = ([[value + more for value in row] for row in matrix] for more in (-0.05, 0.05))
        shares = [[0.25 * (i != j) for j in size] for i in size]
        ceiling = {"value": 0.01, "low": -0.02, "high": 0.04}
        found = {"cosine": matrix, "low": low, "high": high, "below_zero": shares, "magnitude": matrix}
        return {**found, "ceiling": ceiling, "floor": None, "num_images_used": 9}

    return {"kind": "gradient", "heads": names, "root": at(1), "shared": at(2)}


def transfer(*heads: str, level: float = 0.001) -> dict[str, Any]:
    """Heads that help, less and less."""
    own = {
        name: {"value": level * (1 - number), "low": level * (0.5 - number), "high": level * (1.5 - number)}
        for number, name in enumerate(("decoder", *heads))
    }
    table = {"heads": own, "ceiling": {"value": 0.0, "low": -level, "high": level}, "floor": None}
    return {"kind": "transfer", "heads": list(own), "transfer": table, "transfer.far": table}


def queries(*heads: str, near: float = 0.1) -> dict[str, Any]:
    distances = {head: {"to_positives": near, "to_negatives": 4 * near} for head in heads}
    objects = [[0.3, 0.4, 0.2, 0.4], [0.7, 0.6, 0.3, 0.3]]
    example = {"image_id": 1, "width": 60, "height": 40, "objects": objects, "decoder": [[0.3, 0.4], [0.7, 0.6]]}
    return {"kind": "queries", "distances": distances, "examples": [example | {head: [[0.31, 0.42]] for head in heads}]}


def history(start: float, epochs: int = 4) -> list[dict[str, Any]]:
    """Instability falls from epoch to epoch; in the first there is none."""
    values = [None, *(start - epoch for epoch in range(epochs - 1))]
    return [
        {
            "epoch": epoch,
            "AP": 10.0 * epoch,
            "instability": value,
            "instability_gt": None if value is None else value / 2,
        }
        for epoch, value in enumerate(values, 1)
    ]


def image(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def annotation(category: int, *bbox: float, **fields: Any) -> dict[str, Any]:
    return {"category_id": category, "bbox": list(bbox), "iscrowd": 0, **fields}


def detection(category: int, score: float, *bbox: float) -> dict[str, Any]:
    return {"category_id": category, "bbox": list(bbox), "score": score}
