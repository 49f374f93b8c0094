"""The interval of a score: so wide that most labels of clips like it lie inside. calibration.py measures it."""
from dataclasses import dataclass

import numpy as np

from conventions import TRAITS

LEVEL = 0.8     # so many of the labels lie in the interval


@dataclass(frozen=True)
class Intervals:
    """Half the width of the interval of each trait: of a clip of so many faces, and of one face alone."""
    clip: dict[str, float]
    one_face: dict[str, float]
    faces: float
    level: float = LEVEL

    def half_widths(self, faces: np.ndarray) -> np.ndarray:
        """Return float64 N x 5 for numbers of faces N. The error's variance falls with 1 / faces, down to a clip's."""
        clip, one = (np.array([widths[trait] for trait in TRAITS]) for widths in (self.clip, self.one_face))
        part = np.clip((1 / np.maximum(faces, 1) - 1 / self.faces) / max(1 - 1 / self.faces, 1e-9), 0, 1)[:, None]
        return np.sqrt(part * np.maximum(one, clip) ** 2 + (1 - part) * clip ** 2)
