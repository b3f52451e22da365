"""The language loss against logits + cross-entropy: time and peak memory, forward and backward.

    python benchmarks/language_loss.py [--tokens 8192] [--repeats 2] [--threads 2] [--quick]

Width 256, float32, a vocabulary of 151,936, a fifth of the tokens supervised. `logits` is the loss of transformers'
causal models (ForCausalLMLoss): logits of every token, cross-entropy that ignores labels of -100. `torch`, with
--torch-too, is linear_cross_entropy of torch 2.13 and newer on the supervised rows, with our chunk size. Losses and
gradients are checked equal on a sixteenth of the tokens before anything is timed; the arms alternate. Memory is the
peak of a separate process above its start, without the gradients of states and weight. `logits` needs about 16 GiB.
The last line is one JSON object; its ratios are ours to `logits`.
"""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from harness import in_own_process, interleaved_medians, last_line, peak_bytes
from torch.nn import functional as F

from bbu.losses import language_loss
from bbu.losses.language_loss import linear_cross_entropy_sum

WIDTH, VOCABULARY, SUPERVISED = 256, 151_936, 0.2
IGNORED = -100
GIB = 2**30

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def logits_loss(states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(states, weight).float(), labels, ignore_index=IGNORED, reduction="sum")


def our_loss(states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    rows = (labels != IGNORED).nonzero().flatten()
    return linear_cross_entropy_sum(states[rows], weight, labels[rows])


def torch_loss(states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    rows = (labels != IGNORED).nonzero().flatten()
    rows_at_once = max(1, language_loss.CHUNK_ELEMENTS // len(weight))
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows_at_once, chunking_method=None)
    loss: torch.Tensor = F.linear_cross_entropy(states[rows], weight, labels[rows], reduction="sum", options=options)
    return loss


LOSSES: dict[str, Loss] = {"logits": logits_loss, "torch": torch_loss, "ours": our_loss}


def random_inputs(tokens: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States (tokens, WIDTH) and weight (vocabulary, WIDTH) with gradients, labels (tokens,)."""
    states = torch.randn(tokens, WIDTH, requires_grad=True)
    weight = torch.randn(vocabulary, WIDTH).mul_(0.05).requires_grad_()
    labels = torch.full((tokens,), IGNORED)
    rows = torch.randperm(tokens)[: round(tokens * SUPERVISED)]
    labels[rows] = torch.randint(vocabulary, (len(rows),))
    return states, weight, labels


def step(loss: Loss, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Forward and backward of the mean over supervised tokens, from empty gradients."""
    states, weight, labels = inputs
    states.grad = weight.grad = None
    mean = loss(states, weight, labels) / (labels != IGNORED).sum()
    mean.backward()
    return mean.detach()


def check_equal(names: Sequence[str], tokens: int, vocabulary: int) -> None:
    """Compare losses and gradients of the arms, which also warms them up."""
    inputs = random_inputs(tokens, vocabulary)
    results = [(step(LOSSES[name], inputs), inputs[0].grad, inputs[1].grad) for name in names]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-6)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_memory(name: str, tokens: int, vocabulary: int) -> None:
    """Run in a separate process; the last line has the bytes above inputs, weight and gradients."""
    step(LOSSES[name], random_inputs(64, 1000))  # lets torch load its libraries
    inputs = random_inputs(tokens, vocabulary)
    before = resident_bytes()
    step(LOSSES[name], inputs)
    gradients = sum(one.grad.nbytes for one in inputs[:2] if one.grad is not None)
    last_line(name, bytes=peak_bytes() - before - gradients)


def refuse_without_memory(tokens: int, vocabulary: int) -> None:
    """Exit where memory cannot hold the logits, their log-softmax and its gradient at once."""
    needed = 3 * tokens * vocabulary * 4 + 2 * GIB
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    if free < needed:
        fits = max(0, free - 2 * GIB) // (3 * vocabulary * 4)
        raise SystemExit(f"{tokens} tokens need {needed / GIB:.1f} GiB, {free / GIB:.1f} are free; try --tokens {fits}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="2,048 tokens, a vocabulary of 4,000, once")
    parser.add_argument("--torch-too", action="store_true", help="time torch's linear_cross_entropy as well")
    parser.add_argument("--memory-of", choices=LOSSES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(secrets.randbits(32))
    tokens, vocabulary = (2048, 4000) if arguments.quick else (arguments.tokens, VOCABULARY)
    if arguments.memory_of:
        measure_memory(arguments.memory_of, tokens, vocabulary)
        return
    refuse_without_memory(tokens, vocabulary)
    names = [name for name in LOSSES if name != "torch" or arguments.torch_too]
    check_equal(names, max(tokens // 16, 8), vocabulary)
    quick = ["--quick"] if arguments.quick else []
    same = ["--tokens", str(tokens), "--threads", str(arguments.threads), *quick]
    memory = {name: in_own_process(__file__, ["--memory-of", name, *same])["bytes"] for name in names}
    inputs = random_inputs(tokens, vocabulary)
    arms = {name: lambda loss=LOSSES[name]: step(loss, inputs) for name in names}
    seconds = interleaved_medians(arms, 1 if arguments.quick else arguments.repeats, warm_up=False)
    print(f"{tokens} tokens, {SUPERVISED:.0%} supervised, width {WIDTH}, vocabulary {vocabulary}, float32")
    for name in names:
        print(f"{name:<7} {seconds[name]:8.3f} s   {memory[name] / 2**20:9.1f} MiB")
    last_line(
        "language_loss",
        peak_memory_ratio=memory["ours"] / memory["logits"],
        time_ratio=seconds["ours"] / seconds["logits"],
    )


if __name__ == "__main__":
    main()
