"""How near planned lengths are to real ones: real tokens as a share of the planned ones, by augmentation.

    python benchmarks/lengths.py [configs/demo.yaml] [key=value ...] [--samples 100] [--quick]

Planned packs hold what samples may take at most, so this is also about how full they get. 0 to 2 teachers a sample.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from harness import last_line

from bbu.config import AugmentConfig, EpisodesConfig, load_config
from bbu.data.packing.lengths import LengthMeter, StreamLengths
from bbu.families.cost import CostModel
from bbu.stages.run import Run, open_run

PROJECT = Path(__file__).resolve().parents[1]
MOVES = {"flip_horizontal": 0.5, "quarter_turns": True}
SETTINGS = {
    "colours": {"brightness": 0.3},
    "turns": MOVES,
    "crops": {**MOVES, "crop": 0.5, "rotate": 10.0},
    "mosaic": {**MOVES, "mosaic": 0.5},
    "copy_paste": {**MOVES, "copy_paste": 0.5},
    "both": {**MOVES, "mosaic": 0.5, "copy_paste": 0.5},
}


def shares(run: Run, samples: int, folder: Path) -> tuple[float, int]:
    """Real tokens of the first samples over those planned, and how many samples are longer than planned."""
    meter = LengthMeter(run.processor, run.config.data.augment, run.taxonomy.mirror)
    planned = StreamLengths(run.stream, meter, CostModel(1, 0, 0, 0), folder / "lengths.json").epoch(0)
    count = min(samples, len(planned))
    real = [len(run.stream[place].input_ids) for place in range(count)]
    longer = sum(one > most for one, most in zip(real, planned.tokens.tolist(), strict=False))
    return sum(real) / float(planned.tokens[:count].sum()), longer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", nargs="?", default=str(PROJECT / "configs" / "demo.yaml"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="a few photos, drawn; 4 samples")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.samples = 4
        arguments.overrides += ["data.source.photos={train: 6, val: 1, test: 1}"]
    config = load_config(arguments.config, arguments.overrides)
    config.data.episodes = EpisodesConfig(counts={0: 1.0, 1: 1.0, 2: 1.0}, pool="train")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir = folder
        data = open_run(config).data
        for name, augment in SETTINGS.items():
            config.data.augment = AugmentConfig(**augment)
            figures[name], longer = shares(Run(config, data), arguments.samples, Path(folder))
            print(
                f"{name:<11} {figures[name]:6.1%} of the planned tokens are real; {longer} samples longer than planned"
            )
            figures[f"{name}_longer"] = longer
    last_line("lengths", **figures)


if __name__ == "__main__":
    main()
