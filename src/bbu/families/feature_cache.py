"""What a tower that does not learn makes of photos, on disk: computed once, read in every later epoch.

    FOLDER/<tower>/<photo>.safetensors      (P, D) states of one photo's patches before the merger

``<tower>`` is a hash of weights, sizes, attention backend, dtype and kind of device; ``<photo>`` of patch values and
grid (``ChatProcessorOutput.image_keys``). Each photo passes the tower by itself, so that what is kept does not depend,
in its last bits, on the pack that it was first seen in.

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
    """A folder that any number of processes read and write at once; files in it are whole.

    Args:
        folder: made when the first photo is kept.

    ``read``, ``written``: photos so far, of this process.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.read = self.written = 0
        self._writable = True
        self._hashed: tuple[tuple[tuple[int, int], ...], str] | None = None

    def tower(self, weights: Mapping[str, torch.Tensor], facts: str) -> str:
        """The name of a tower.

        Args:
            weights: of all that features depend on. They are hashed once, and again only where one was written to.
            facts: all else that features depend on.
        """
        versions = tuple((weight.data_ptr(), weight._version) for weight in weights.values())
        if self._hashed is None or self._hashed[0] != versions:
            self._hashed = (versions, _hash_weights(weights))
        return hashlib.sha256(f"{self._hashed[1]} {facts}".encode()).hexdigest()[:32]

    def get(self, tower: str, photo: str) -> torch.Tensor | None:
        """(P, D) states, on the CPU; None where there are none. A file that is damaged counts as none."""
        try:
            states_PD = load_file(self._path(tower, photo))[_NAME]
        except (OSError, SafetensorError, KeyError):
            return None
        self.read += 1
        return states_PD

    def put(self, tower: str, photo: str, states_PD: torch.Tensor) -> None:
        """Keep states; a disk that takes no more is said once and does not end the run."""
        if not self._writable:
            return
        try:
            with atomic_file(self._path(tower, photo)) as file:  # of several writers the last wins; all write the same
                file.write_bytes(save({_NAME: states_PD.detach().cpu().contiguous()}))
            self.written += 1
        except OSError as error:
            self._writable = False
            warnings.warn(f"{self.folder}: {error.strerror}; no more features are kept there", stacklevel=2)

    def describe(self) -> str:
        """How many photos the folder holds and how large it is, of all towers."""
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
