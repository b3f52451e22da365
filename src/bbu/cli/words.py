"""The command that shows which visual words a photo's tokens choose.

Shapes: Y height in pixels or tokens, Z width in pixels or tokens.
"""

from __future__ import annotations

import argparse

from bbu.cli.arguments import Commands


def add_commands(commands: Commands) -> None:
    """``bbu inspect-tokens``."""
    text = "draw the visual words that a photo's tokens choose"
    inspect = commands.add_parser("inspect-tokens", help=text, description=text)
    inspect.set_defaults(action=_inspect)
    inspect.add_argument("model", help="a run's model folder, of a family with a visual vocabulary")
    inspect.add_argument("photo")
    inspect.add_argument("--output", default="tokens.png", help="PNG to write (default tokens.png)")
    inspect.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")


def _inspect(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from bbu.data.photo import Photo
    from bbu.drawing.panels import save_png
    from bbu.drawing.words import draw_words
    from bbu.images import load_image
    from bbu.inference import Inference
    from bbu.inference.words import use_of, words_of

    image = load_image(arguments.photo)
    predictor = Inference(arguments.model, precision=arguments.precision).predictor
    (found,) = words_of(predictor, [Photo(image, arguments.photo)])
    picture = draw_words(image, found.words_YZ.cpu().numpy(), found.entropy_YZ.cpu().numpy(), found.vocabulary)
    save_png(picture, Path(arguments.output))
    use = use_of([found])
    rows, columns = found.words_YZ.shape
    print(
        f"{columns} x {rows} tokens choose {round(use.in_use * found.vocabulary)} of {found.vocabulary} words; entropy "
        f"{use.entropy:.0%} of its largest value\nwritten: {arguments.output}"
    )
    return 0
