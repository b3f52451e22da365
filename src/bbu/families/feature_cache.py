"""On-disk cache of frozen vision features: computed once, read in every later epoch.

    FOLDER/<tower>/<photo>.safetensors      (P, D) states of one photo's patches before the merger

``<tower>`` is a hash of weights, sizes, attention backend, dtype and kind of device; ``<photo>`` is a hash of patch
values and grid (``ChatProcessorOutput.image_keys``). Each photo passes the tower alone, so that not even the last bits
of its features depend on the pack in which it was first seen.

Shapes: P patch rows, D feature width.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from bbu.jsonl import atomic_file

_NAME = "states"
GIGABYTE = 1e9


class FeatureCache:
    """A folder that any number of processes may read and write at once; files are written atomically.

    Args:
        folder: created with the first photo.

    ``read``, ``written``: number of photos so far, in this process.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.read = self.written = 0
        self._writable = True
        self._hashed: tuple[tuple[tuple[int, int], ...], str] | None = None

    def tower(self, weights: Mapping[str, torch.Tensor], facts: str) -> str:
        """The cache key of a tower.

        Args:
            weights: all weights that features depend on; hashed again only after one was written to.
            facts: everything else that features depend on.
        """
        versions = tuple((weight.data_ptr(), weight._version) for weight in weights.values())
        if self._hashed is None or self._hashed[0] != versions:
            self._hashed = (versions, _hash_weights(weights))
        return hashlib.sha256(f"{self._hashed[1]} {facts}".encode()).hexdigest()[:32]

    def get(self, tower: str, photo: str) -> torch.Tensor | None:
        """(P, D) states on the CPU; None if they are not cached or the file is damaged."""
        try:
            states_PD = load_file(self._path(tower, photo))[_NAME]
        except (OSError, SafetensorError, KeyError):
            return None
        self.read += 1
        return states_PD

    def put(self, tower: str, photo: str, states_PD: torch.Tensor) -> None:
        """Write states; the first failed write gives a warning and disables writing, without ending the run."""
        if not self._writable:
            return
        try:
            with atomic_file(self._path(tower, photo)) as file:  # the last writer wins; all write the same
                file.write_bytes(save({_NAME: states_PD.detach().cpu().contiguous()}))
            self.written += 1
        except OSError as error:
            self._writable = False
            warnings.warn(f"{self.folder}: {error.strerror}; no more features are kept there", stacklevel=2)

    def describe(self) -> str:
        """Number of cached photos and their size, over all towers."""
        sizes = [path.stat().st_size for path in self.folder.glob("*/*.safetensors")]
        return f"{self.folder} holds {len(sizes)} photos, {sum(sizes) / GIGABYTE:.2f} GB"

    def _path(self, tower: str, photo: str) -> Path:
        return self.folder / tower / f"{photo}.safetensors"


def _hash_weights(weights: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, weight in weights.items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
