"""An index of many names that takes 8 bytes a name."""
import array
import hashlib
import os
from collections.abc import Iterable

import numpy as np


class NameIndex:
    """Many names in 8 bytes each: their sorted hashes."""

    def __init__(self, names: Iterable[str]):
        hashes = array.array("Q", map(self._hash, names))
        self.hashes = np.sort(np.frombuffer(hashes, np.uint64)) if hashes else np.empty(0, np.uint64)
        self.repeated = set(self.hashes[1:][self.hashes[1:] == self.hashes[:-1]].tolist())

    @staticmethod
    def _hash(name: str) -> int:
        return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little")

    def __len__(self) -> int:
        return len(self.hashes)

    def find(self, name: str) -> int | None:
        """Return the place of a name, from 0 to len() - 1, or None where it is not among the names."""
        number = np.uint64(self._hash(name))
        place = int(np.searchsorted(self.hashes, number))
        return place if place < len(self.hashes) and self.hashes[place] == number else None

    def occurs_twice(self, name: str) -> bool:
        return bool(self.repeated) and self._hash(name) in self.repeated
