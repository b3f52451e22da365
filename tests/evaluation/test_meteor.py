"""METEOR 1.5: the same numbers as the package's own class, and every way it can fail said in one line.

Java and the package are seldom there; all but the numbers is tested with a stand-in for ``java``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bbu.errors import UserError
from bbu.evaluation import meteor
from bbu.evaluation.meteor import exact_meteor
from bbu.evaluation.phrase_similarity import words

HAVE_METEOR = bool(importlib.util.find_spec(meteor.PACKAGE) and shutil.which("java"))

FakeJava = Callable[[str], Path]

# Answers every pair with the number of words predicted / 10, in METEOR's format.
COUNTS_WORDS = """
for word in "$@"; do case "$word" in *predictions.txt) file="$word";; esac; done
echo "$@" >> "$0.calls"
echo "Meteor version: 1.5"
awk '{ printf "Segment %d score:\\t%s\\n", NR, NF / 10 }' "$file"
echo "Final score: 0.5"
"""


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeJava:
    """fake_java(script): a shell script in java's place, and an empty jar in the package's; returns the script."""

    def make(script: str) -> Path:
        java = tmp_path / "java"
        java.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        java.chmod(0o755)
        jar = tmp_path / meteor.PACKAGE / "meteor" / "meteor-1.5.jar"
        jar.parent.mkdir(parents=True)
        jar.touch()
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delitem(sys.modules, meteor.PACKAGE, raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))
        return java

    return make


# ---------------------------------------------------------------- the real one


@pytest.mark.skipif(not HAVE_METEOR, reason="exact METEOR is not here: it needs java and pip install pycocoevalcap")
def test_scores_are_those_of_the_packages_own_class(shared_dir: Path) -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    source = shared_dir / "data" / "vg_regions_text" / "region_descriptions_samples.json"
    photos = json.loads(source.read_text(encoding="utf-8"))
    phrases = [region["phrase"] for photo in photos for region in photo["regions"]]
    rng = random.Random(0)
    pairs = [(rng.choice(phrases), tuple(rng.sample(phrases, rng.choice((1, 2, 4))))) for _ in range(200)]
    pairs += [(phrase, (phrase[: len(phrase) * 2 // 3], phrase.upper())) for phrase in phrases[:100]]
    theirs = Meteor()
    plain = {index: ([" ".join(words(said))], [" ".join(words(t)) for t in texts]) for index, (said, texts) in
             enumerate(pairs)}  # fmt: skip
    _, expected = theirs.compute_score({k: v[1] for k, v in plain.items()}, {k: v[0] for k, v in plain.items()})
    assert exact_meteor(pairs) == pytest.approx(expected, abs=1e-9)
    assert max(expected[:200]) < 1 == max(expected)  # the cases differ


# ---------------------------------------------------------------- how it is asked


def test_a_pair_is_asked_once_and_the_nearest_reference_counts(fake_java: FakeJava) -> None:
    java = fake_java(COUNTS_WORDS)
    asked = [("a red dog", ("one", "two")), ("dog", ("one",)), ("A red dog!", ("two", "One")), ("dog", ())]
    assert exact_meteor(asked) == [0.3, 0.1, 0.3, 0.0]
    (call,) = Path(f"{java}.calls").read_text(encoding="utf-8").splitlines()
    assert call.endswith("-l en -norm") and "-jar" in call


def test_nothing_to_score_starts_nothing(fake_java: FakeJava) -> None:
    java = fake_java(COUNTS_WORDS)
    assert exact_meteor([]) == [] and exact_meteor([("dog", ())]) == [0.0]
    assert not Path(f"{java}.calls").exists()


# ---------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize("phrase", ["螺丝", "BBU 螺丝", "собака", "いぬ"])
def test_other_scripts_are_refused_by_name(phrase: str, fake_java: FakeJava) -> None:
    java = fake_java(COUNTS_WORDS)
    for pair in ((phrase, ("a dog",)), ("a dog", ("a cat", phrase))):
        with pytest.raises(UserError, match=f"English only, but '{phrase}'"):
            exact_meteor([pair])
    assert not Path(f"{java}.calls").exists()


def test_accents_marks_and_full_width_letters_are_latin(fake_java: FakeJava) -> None:
    fake_java(COUNTS_WORDS)
    assert exact_meteor([("café №5 ½ ＢＢＵ…", ("a dog",))])


def test_no_java_and_no_package_are_said_with_the_cure(fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(COUNTS_WORDS)
    monkeypatch.setitem(sys.modules, meteor.PACKAGE, None)
    with pytest.raises(UserError, match=r"pycocoevalcap, which is not installed; pip install pycocoevalcap"):
        exact_meteor([("dog", ("dog",))])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="java was not found; install a Java runtime"):
        exact_meteor([("dog", ("dog",))])


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'Picked up options' >&2; echo 'Out of memory' >&2; exit 3", "status 3: Out of memory"),
        ("kill -9 $$", "status -9: no message"),
        ("echo 'Segment 1 score:\t0.5'", "scored 1 of 2 phrases"),
        ("echo nonsense", "scored 0 of 2 phrases"),
    ],
)
def test_a_program_that_fails_is_one_line(script: str, why: str, fake_java: FakeJava) -> None:
    fake_java(script)
    with pytest.raises(UserError, match=why) as caught:
        exact_meteor([("dog", ("a dog", "a cat"))])
    assert "\n" not in str(caught.value)


def test_a_program_that_hangs_is_ended_and_leaves_no_process(
    fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = fake_java('echo $$ > "$0.pid"; exec sleep 60')
    monkeypatch.setattr(meteor, "SECONDS_TO_START", 0.5)
    with pytest.raises(UserError, match="no answer in 1 s and was stopped"):
        exact_meteor([("dog", ("dog",))])
    with pytest.raises(ProcessLookupError):  # a zombie would still have its number
        os.kill(int(Path(f"{java}.pid").read_text(encoding="utf-8")), 0)
