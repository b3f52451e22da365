"""METEOR 1.5 (Denkowski and Lavie 2014): the authors' Java program, as packaged by pycocoevalcap.

It runs once over all pairs, as ``java -jar meteor-1.5.jar predictions references -l en -norm``, the options of the
published dense-captioning evaluation. English only. ``phrase_similarity.py`` needs neither Java nor the package.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from bbu.errors import UserError
from bbu.evaluation.phrase_similarity import CaptionPair, words

PACKAGE = "pycocoevalcap"
# Loading the paraphrases takes 5 s and a pair 0.3 ms on one slow core; beyond ten times that, the program hangs.
SECONDS_TO_START, SECONDS_A_PAIR = 120.0, 0.003
_SCORE = re.compile(r"^Segment (\d+) score:\s+(\S+)$", re.MULTILINE)


def exact_meteor(pairs: Sequence[CaptionPair]) -> list[float]:
    """METEOR in [0, 1] of each prediction: the best score over its references.

    Phrases are tokenised by ``phrase_similarity.words``; each distinct pair is scored once.

    Raises:
        UserError: Java or the package is missing, a phrase is not in Latin letters, or the program failed or hung.
    """
    for phrase in (phrase for said, texts in pairs for phrase in (said, *texts)):
        _check_latin(phrase)
    lines = {said: " ".join(words(said)) for pair in pairs for said in (pair[0], *pair[1])}
    wanted = dict.fromkeys((lines[said], lines[text]) for said, texts in pairs for text in texts)
    scores = dict(zip(wanted, _run(list(wanted)) if wanted else (), strict=True))
    return [max((scores[lines[said], lines[text]] for text in texts), default=0.0) for said, texts in pairs]


def _check_latin(phrase: str) -> None:
    for glyph in phrase:
        if glyph.isalpha() and not (glyph.isascii() or unicodedata.name(glyph, "").startswith(("LATIN", "FULLWIDTH"))):
            raise UserError(
                f"exact METEOR compares English only, but {phrase!r} has {glyph!r}; "
                "leave out --meteor exact: approximate METEOR compares Chinese by character"
            )


def _run(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Scores of (prediction, reference) lines, in their order."""
    java = shutil.which("java")
    if java is None:
        raise UserError("exact METEOR is a Java program, but java was not found; install a Java runtime (8 or newer)")
    jar = _find_jar()
    with tempfile.TemporaryDirectory(prefix="meteor-") as folder:
        files = [Path(folder) / name for name in ("predictions.txt", "references.txt")]
        for file, lines in zip(files, zip(*pairs, strict=True), strict=True):
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        command = [java, "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", str(jar), *map(str, files), "-l", "en", "-norm"]
        output = _output_of(command, SECONDS_TO_START + SECONDS_A_PAIR * len(pairs))
    scores = [float(score) for _, score in _SCORE.findall(output)]
    if len(scores) != len(pairs):
        raise UserError(f"METEOR scored {len(scores)} of {len(pairs)} phrases ({jar}); reinstall {PACKAGE}")
    return scores


def _output_of(command: Sequence[str], seconds: float) -> str:
    """The program's output; the process never outlives this call."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=seconds)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"METEOR gave no answer in {seconds:.0f} s and was stopped; is the machine overloaded?"
        ) from None
    except OSError as error:
        raise UserError(f"{command[0]}: cannot be started: {error.strerror}") from None
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise UserError(f"METEOR ended with status {done.returncode}: {reason}")
    return done.stdout


def _find_jar() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        jar = Path(folder) / "meteor" / "meteor-1.5.jar"
        if jar.is_file():
            return jar
    raise UserError(f"exact METEOR needs the package {PACKAGE}, which is not installed; pip install {PACKAGE}")
