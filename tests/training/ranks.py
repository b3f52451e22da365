"""One rank of a data-parallel run of the real trainer, under torchrun's environment variables.

``python -m tests.training.ranks FOLDER FAMILY``; used by test_same_gradient.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.training.cuts import CUTS, gradients_of_cut


def main() -> None:
    folder = Path(sys.argv[1])
    for name, cut in CUTS.items():
        if cut.ranks > 1:
            found = gradients_of_cut(cut, folder / name, sys.argv[2])
            if torch.distributed.get_rank() == 0:
                torch.save(found, folder / f"{name}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
