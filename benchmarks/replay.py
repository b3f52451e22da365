"""What a model forgets while it learns to detect, and what replay keeps (data.replay, docs/replay.md).

    python benchmarks/replay.py [--share 0.25] [--steps 150] [--seeds 17] [--quick]

A tiny Qwen2.5-VL first learns facts by heart from text alone (``general`` rows), each asked in two of three ways. Then
it learns to detect on drawn cabinet photos, once with photos alone and once with a share of its samples replayed from
the general rows: the same steps, the same samples a step, the same start. The questions asked in the third way, which
are in no training row, are the held-out rows: their language loss in nats per token is measured before and after.
AP50, by description and class-agnostic, is on val. The last line is one JSON object; means over the seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from convergence_arms import OwnArm, rate_at
from harness import last_line

from bbu.config import Config, ReplayConfig, load_config
from bbu.data.chat_processor import ChatProcessorOutput
from bbu.data.dataset import TrainingStream
from bbu.data.replay import load_replay
from bbu.evaluation import evaluate
from bbu.families.registry import backbone_class
from bbu.families.tokenizer import train_tokenizer
from bbu.jsonl import write_jsonl
from bbu.models.build import prompt_spec
from bbu.stages import PreparedData, prepare

PROJECT = Path(__file__).resolve().parents[1]
PEOPLE = (
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gita",
    "Hugo",
    "Ida",
    "Jon",
    "Kim",
    "Lea",
    "Max",
    "Nora",
    "Otto",
    "Pia",
)
FACTS = {
    "door": ("red", "blue", "green", "white", "black", "yellow"),
    "dog": ("small", "old", "loud", "quick", "shy", "fat"),
    "town": ("Rome", "Oslo", "Lima", "Kyoto", "Cairo", "Bern"),
}
QUESTIONS = ("What is the {what} of {who}?", "Tell me about {who}: which {what}?", "{who} has a {what}. Which one?")
SMALLER = (
    "data.max_pixels=50176",
    "model.scratch.vision_width=96",
    "model.scratch.vision_depth=2",
    "model.scratch.vision_full_attention=[1]",
    "model.detection.width=96",
    "model.detection.heads=4",
    "model.detection.layers=2",
    "loss.student_lm_weight=1.0",
)
TALKS_AT_ONCE = 16
GENERAL_RATE = 2e-3
LLM_RATE = GENERAL_RATE  # also in detection, so that a short run forgets as much as a long one


def general_rows(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and held-out conversations: of every fact's three questions, two and one."""
    random = np.random.default_rng(seed)
    learned, held_out = [], []
    for who in PEOPLE:
        for what, values in FACTS.items():
            answer = f"The {what} of {who} is {values[random.integers(len(values))]}."
            left_out = int(random.integers(len(QUESTIONS)))
            for number, question in enumerate(QUESTIONS):
                row = _row(question.format(what=what, who=who), answer)
                (held_out if number == left_out else learned).append(row)
    return learned, held_out


def _row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


class Learner(OwnArm):
    """The product's model and objective; its stream may replay conversations."""

    def general_samples(self, path: Path) -> list[ChatProcessorOutput]:
        """All conversations of a file."""
        replay = load_replay(ReplayConfig(str(path), 0.5), self.stream.processor)
        assert replay is not None
        return [self.stream.processor.process_conversation(row, path.parent) for row in replay.rows]

    def learn_text(self, samples: Sequence[ChatProcessorOutput], steps: int, seed: int) -> None:
        """The facts, from text alone; the optimizer of detection is not touched."""
        llm = [p for name, p in self.module.named_parameters() if self.objective.model.group_of(name[6:]) == "llm"]
        optimizer = torch.optim.AdamW(llm, lr=GENERAL_RATE)
        random = np.random.default_rng(seed)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = GENERAL_RATE * rate_at(step / steps, 0.1)
            drawn = random.choice(len(samples), min(TALKS_AT_ONCE, len(samples)), replace=False)
            self.loss([samples[number] for number in drawn]).backward()
            torch.nn.utils.clip_grad_norm_(llm, self.max_grad_norm)
            optimizer.step()
            self.module.zero_grad()

    @torch.no_grad()
    def text_loss(self, samples: Sequence[ChatProcessorOutput]) -> float:
        """Nats per answer token."""
        self.module.eval()
        total = sum(float(self.objective(**self.collator([sample]))["replay_lm"]) for sample in samples)
        return total / sum(stop - start for sample in samples for start, stop in sample.replay_spans)

    def learn_to_detect(self, config: Config, data: PreparedData, steps: int) -> None:
        """Detection for so many steps, with the config's replay."""
        processor = self.stream.processor
        self.stream = TrainingStream(
            data.samples("train"),
            processor,
            length=steps * self.batch,
            seed=config.seed,
            augment=config.data.augment,
            replay=load_replay(config.data.replay, processor),
        )
        for step in range(steps):
            self.learn(rate_at(step / steps, 0.1))

    def average_precision(self, data: PreparedData) -> tuple[float, float]:
        """AP50 on val, by description and class-agnostic."""
        rows = data.rows("val")
        metrics = evaluate(rows, self.predict(rows), bootstrap_samples=0)
        return float(metrics["AP50"] or 0.0), float(metrics["AP50_agnostic"] or 0.0)


def measure(config: Config, data: PreparedData, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The figures of one seed."""
    learned, held_out = general_rows(config.seed)
    write_jsonl(folder / "general.jsonl", learned)
    write_jsonl(folder / "held_out.jsonl", held_out)
    config.model.tokenizer = str(_tokenizer(config, data, [*learned, *held_out], folder))
    first = Learner(config, data)
    questions = first.general_samples(folder / "held_out.jsonl")
    never = first.text_loss(questions)
    first.learn_text(first.general_samples(folder / "general.jsonl"), arguments.text_steps, config.seed)
    found = {"loss_untrained": never, "loss_before": first.text_loss(questions)}
    start = copy.deepcopy(first.module.state_dict())
    for name, share in (("without", 0.0), ("with", arguments.share)):
        replay = ReplayConfig(str(folder / "general.jsonl"), share)
        arm = Learner(config, data)
        arm.module.load_state_dict(start)
        arm.learn_to_detect(replace(config, data=replace(config.data, replay=replay)), data, arguments.steps)
        by_description, agnostic = arm.average_precision(data)
        found[f"loss_{name}"] = arm.text_loss(questions)
        found |= {f"ap50_{name}": by_description, f"ap50_agnostic_{name}": agnostic}
        print(f"seed {config.seed}, {name}: {found}", file=sys.stderr, flush=True)
    return found


def _tokenizer(config: Config, data: PreparedData, rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """A tokenizer trained on both tasks' text, as a pretrained model's has seen text of all kinds."""
    spec = prompt_spec(config)
    texts = [message["content"] for row in rows for message in row["messages"]]
    texts += [spec.system, spec.instruction, *(item.desc for row in data.rows("train") for item in row.objects)]
    conversation = backbone_class(config.model.family).conversation
    path = folder / "tokenizer"
    train_tokenizer(texts, config.model.scratch["vocab_size"], conversation).save_pretrained(path)
    return path


def load(arguments: argparse.Namespace, folder: Path) -> tuple[Config, PreparedData]:
    """The demo with small photos and a smaller model, so that a step takes little."""
    photos = "{train: 4, val: 2, test: 1}" if arguments.quick else "{train: 120, val: 24, test: 1}"
    overrides = [f"output_dir={folder / 'run'}", f"data.source.photos={photos}", *SMALLER]
    config = load_config(PROJECT / "configs" / "demo.yaml", overrides)
    config.training.learning_rates.llm = LLM_RATE
    with contextlib.redirect_stdout(sys.stderr):  # keep the conversion's messages out of the table
        return config, prepare(config)


def table(found: Mapping[str, float], share: float) -> str:
    """Held-out loss and AP50, a line for each moment."""
    lines = [f"{'held-out general rows, nats per token':<40}{'loss':>8}{'AP50':>8}{'agnostic':>10}"]
    lines += [
        f"{'untrained':<40}{found['loss_untrained']:>8.3f}",
        f"{'before detection':<40}{found['loss_before']:>8.3f}",
    ]
    for name, title in (("without", "after, photos alone"), ("with", f"after, {share:.0%} of the samples replayed")):
        values = (found[f"{key}_{name}"] for key in ("loss", "ap50", "ap50_agnostic"))
        lines.append(f"{title:<40}" + "{:>8.3f}{:>8.3f}{:>10.3f}".format(*values))
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--share", type=float, default=0.25, help="data.replay.share")
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of detection, each arm")
    parser.add_argument("--text-steps", type=int, default=120, help="optimizer steps on text before")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument("--threads", type=int, default=0, help="0 = all cores")
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.steps = arguments.text_steps = 3
    found = []
    with tempfile.TemporaryDirectory(prefix="bbu-benchmark-") as folder:
        config, data = load(arguments, Path(folder))
        for seed in arguments.seeds:
            config.seed = seed
            found.append(measure(config, data, arguments, Path(folder)))
    means = {key: statistics.fmean(one[key] for one in found) for key in found[0]}
    print(table(means, arguments.share))
    last_line("replay", share=arguments.share, **means)


if __name__ == "__main__":
    main()
