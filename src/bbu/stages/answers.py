"""What the language model answers on val and on the evaluation split: its loss, and its written answers scored."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bbu.evaluation.answers import WrittenAnswer, answer_metrics, overall_accuracy
from bbu.jsonl import write_json, write_jsonl
from bbu.records import FewShotSample
from bbu.stages.run import Run
from bbu.training.distributed import gather, rank, world_size

if TYPE_CHECKING:
    from bbu.inference.predictor import Predictor

ANSWERS_FILE = "answers.jsonl"


def questions_on(run: Run, split: str, most: int | None = None) -> list[FewShotSample]:
    """What the photos of a split can be asked for, as training asks.

    Args:
        most: of each kind, evenly spaced; None = all.
    """
    kinds: defaultdict[str, list[FewShotSample]] = defaultdict(list)
    for question in run.questions(split):
        kinds[question.answer].append(question)
    return [question for some in kinds.values() for question in _spaced(some, most)]


def _spaced(items: Sequence[FewShotSample], most: int | None) -> list[FewShotSample]:
    if most is None or len(items) <= most:
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def scores_on_val(run: Run, predictor: Predictor, go_on: Callable[[], bool]) -> dict[str, float | None]:
    """``loss``, the mean over the tokens of all right answers, and where training.select_best asks for it ``accuracy``.

    Ranks ask a shard of the questions each; all of them get the same figures.

    Raises:
        EvaluationStoppedError: on all ranks, if ``go_on`` was False on one.
    """
    from bbu.inference.answers import answer_loss, written_answers
    from bbu.training.stopping import EvaluationStoppedError

    stopped = False

    def watched() -> bool:
        nonlocal stopped
        stopped = stopped or not go_on()
        return not stopped

    mine, left_out = slice(rank(), None, world_size()), _LeftOut()
    found: dict[str, float | None] = {}
    sums = gather([answer_loss(predictor, questions_on(run, "val")[mine], watched, left_out)])
    written: list[WrittenAnswer] = []
    if run.config.training.select_best == "accuracy":
        some = questions_on(run, "val", run.config.evaluation.answers)[mine]
        written = list(written_answers(predictor, some, watched, left_out))
    if any(gather([stopped])):
        raise EvaluationStoppedError
    tokens = sum(count for _, count in sums)
    found["loss"] = sum(total for total, _ in sums) / tokens if tokens else None
    if run.config.training.select_best == "accuracy":
        found["accuracy"] = overall_accuracy([row for of_rank in gather([written]) for row in of_rank])
    left_out.say("val")
    return found


class _LeftOut:
    """Questions that could not be asked: an unreadable photo, or a sample longer than data.max_length."""

    def __init__(self) -> None:
        self.why: dict[str, str] = {}

    def __call__(self, question: FewShotSample, why: str) -> None:
        self.why.setdefault(f"{question.answer} of {question.student.images[0]}", why)

    def say(self, split: str) -> None:
        """One line, if there are any."""
        if self.why:
            first = next(iter(self.why.values()))
            print(f"{split}: {len(self.why)} questions left out, e.g. {first}", file=sys.stderr, flush=True)


def answers_are_scored(run: Run) -> bool:
    """Whether the evaluation split has questions, and not only for the boxes that detection gives anyway."""
    asked = run.config.model.detection is None or not run.answers.all_boxes
    return asked and run.config.evaluation.answers > 0 and bool(questions_on(run, run.config.evaluation.split))


def score_answers(run: Run, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Put the questions of the evaluation split to the published model; writes answers.jsonl and metrics.json.

    Args:
        metrics: of the run so far, which metrics.json keeps.

    Returns:
        The scores, as ``answer_metrics`` gives them; they are the key ``answers`` of metrics.json.
    """
    from tqdm import tqdm

    from bbu.inference import Inference
    from bbu.inference.answers import written_answers

    config = run.config
    inference = Inference.as_configured(run.model_folder, config)
    inference.processor.image_root = run.data.image_root
    questions = questions_on(run, config.evaluation.split, config.evaluation.answers)
    left_out = _LeftOut()
    written = written_answers(inference.predictor, questions, failed=left_out)
    bar: Iterable[WrittenAnswer] = tqdm(written, total=len(questions), desc="answers", unit="answer", file=sys.stderr)
    rows = list(bar)
    left_out.say(config.evaluation.split)
    write_jsonl(run.output / ANSWERS_FILE, rows)
    scores = answer_metrics(rows, _most_frequent(run))
    write_json(run.output / "metrics.json", {**metrics, "answers": scores})
    return scores


def _most_frequent(run: Run) -> dict[str, str]:
    """The most frequent training answer of each kind that is the same for several photos: summaries and verdicts."""
    summaries = Counter(row.summary for row in run.students if row.summary)
    verdicts = Counter(question.text for question in run.answers.questions(run.students) if question.text)
    counted = {"summary": summaries, "verdict": verdicts}
    return {answer: str(texts.most_common(1)[0][0]) for answer, texts in counted.items() if texts}
