"""The packing planner against packs filled greedily in random order, for 8 ranks.

    python benchmarks/planner.py [--samples 1000000] [--repeats 3] [--quick]

Samples have 0 to 3 worked examples, 1 to 43 objects a photo and photos of mixed sizes through the real resize rule
(256 to 1024 image tokens); costs are Qwen2.5-VL-3B's. Greedy takes samples in random order into the pack at hand until
one does not fit, and deals the packs out to the ranks in turn. transformers' BatchRebalanceSampler, which knows no
budget, deals out a fixed number of samples a step; on part of the samples, for its imbalance alone. Samples are drawn
afresh each round; packs are checked (each sample once, no budget exceeded, equal counts) before figures are taken.
`fill` is the share of the token budget that is used, `rank_imbalance` the largest cost of a step's ranks over their
mean, less 1, on average over the steps. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import time
from types import SimpleNamespace

import numpy as np
from harness import last_line

from bbu.data.packing.planner import Budgets, Lengths, plan_steps
from bbu.families.photo_plan import smart_resize
from bbu.families.qwen2_5_vl.codec import cost_of

RANKS = 8
BUDGETS = Budgets(tokens=16_384, pixels=16_384 * 28 * 28, images=64)
SIZES = SimpleNamespace(  # config.json of Qwen2.5-VL-3B
    text_config=SimpleNamespace(
        hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2, intermediate_size=11008
    ),
    vision_config=SimpleNamespace(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        fullatt_block_indexes=[7, 15, 23, 31],
        window_size=112,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=2,
    ),
)
OBJECT_TOKENS, QUESTION_TOKENS, SYSTEM_TOKENS = (28, 46), 60, 40  # of an answer's object, a turn, the start
RECKONED = 20_000  # samples that transformers' sampler is asked about; it takes minutes for a million


def photo_tokens(random: np.random.Generator, kinds: int = 2000) -> np.ndarray:
    """(kinds,) image tokens of photos of mixed sizes and shapes."""
    sides = np.exp(random.uniform(np.log(320), np.log(4000), kinds))
    shapes = random.choice([4 / 3, 3 / 4, 16 / 9, 9 / 16, 1.0], kinds)
    resized = (smart_resize(int(a), int(a * b), 28, 200_704, 802_816) for a, b in zip(sides, shapes, strict=True))
    return np.array([height * width // 28**2 for height, width in resized])


def draw_lengths(count: int, random: np.random.Generator) -> Lengths:
    """Realistic samples: few have many objects, each has 0 to 3 teachers."""
    turns = random.integers(1, 5, count)
    present = np.arange(4)[:, None] < turns
    photos = np.where(present, random.choice(photo_tokens(random), (4, count)), 0)
    objects = np.minimum(43, 1 + random.exponential(7, (4, count)).astype(np.int64))
    text = np.where(present, objects * random.integers(*OBJECT_TOKENS, (4, count)) + QUESTION_TOKENS, 0)
    tokens = SYSTEM_TOKENS + (photos + text).sum(0)
    cost = cost_of(SIZES)
    return Lengths(tokens, photos.sum(0) * 28**2, turns, cost.text(tokens) + cost.photos(photos * 4).sum(0))


def greedy(lengths: Lengths, random: np.random.Generator) -> list[list[int]]:
    """Whole steps of packs, each filled with the next samples of a random order."""
    columns = [(getattr(lengths, name).tolist(), limit) for name, limit in BUDGETS.limits.items()]
    packs: list[list[int]] = []
    used = [limit + 1 for _, limit in columns]
    for sample in random.permutation(len(lengths)).tolist():
        used = [have + values[sample] for have, (values, _) in zip(used, columns, strict=True)]
        if any(have > limit for have, (_, limit) in zip(used, columns, strict=True)):
            packs.append([])
            used = [values[sample] for values, _ in columns]
        packs[-1].append(sample)
    return packs[: len(packs) // RANKS * RANKS]


def planned(lengths: Lengths, random: np.random.Generator) -> list[list[int]]:
    """Our packs, whole steps."""
    return plan_steps(lengths, BUDGETS, ranks=RANKS, accumulation=1, random=random).packs


def check(lengths: Lengths, packs: list[list[int]]) -> None:
    """Nothing lost but less than a step, nothing twice, nothing over a budget, whole steps."""
    shown = np.concatenate(packs)
    boundaries = np.cumsum([0, *(len(pack) for pack in packs)])[:-1]
    over = [
        name
        for name, limit in BUDGETS.limits.items()
        if np.add.reduceat(getattr(lengths, name)[shown], boundaries).max() > limit
    ]
    missing = len(lengths) - len(shown)
    if over or len(np.unique(shown)) != len(shown) or len(packs) % RANKS or missing > RANKS * BUDGETS.images:
        raise SystemExit(f"a plan is wrong: over {over}, {missing} samples missing")


def figures(lengths: Lengths, packs: list[list[int]]) -> tuple[float, float]:
    """Fill and rank imbalance."""
    boundaries = np.cumsum([0, *(len(pack) for pack in packs)])[:-1]
    shown = np.concatenate(packs)
    costs = np.add.reduceat(lengths.cost[shown], boundaries).reshape(-1, RANKS)
    fill = lengths.tokens[shown].sum() / (len(packs) * BUDGETS.tokens)
    return float(fill), float((costs.max(1) / costs.mean(1) - 1).mean())


def stock_imbalance(lengths: Lengths, a_step: int) -> float:
    """transformers' sampler, all ranks, at about as many samples a step."""
    from transformers.trainer_pt_utils import BatchRebalanceSampler

    tokens = lengths.tokens[:RECKONED].tolist()
    ranks = [
        BatchRebalanceSampler(tokens, effective_batch_size=a_step, dp_size=RANKS, grad_accum=1, rank=rank)
        for rank in range(RANKS)
    ]
    costs = np.array([[lengths.cost[list(batch)].sum() for batch in sampler] for sampler in ranks]).T
    return float((costs.max(1) / costs.mean(1) - 1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="20,000 samples, once")
    arguments = parser.parse_args()
    count, repeats = (20_000, 1) if arguments.quick else (arguments.samples, arguments.repeats)
    random = np.random.default_rng(secrets.randbits(32))
    arms = {"greedy": greedy, "planned": planned}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in arms}
    for _ in range(repeats):
        lengths = draw_lengths(count, random)
        for name, arm in arms.items():
            started = time.perf_counter()
            packs = arm(lengths, random)
            seconds = time.perf_counter() - started
            check(lengths, packs)
            found[name].append((*figures(lengths, packs), seconds * 1e6 / count))
    a_step = round(RANKS * count / len(packs))
    print(f"{count} samples, mean {lengths.tokens.mean():.0f} tokens, longest {lengths.tokens.max()}; {BUDGETS}")
    print(f"{len(packs)} packs planned, {RANKS} ranks")
    middle = {
        name: [statistics.median(column) for column in zip(*rounds, strict=True)] for name, rounds in found.items()
    }
    for name, (fill, imbalance, seconds) in middle.items():
        print(f"{name:<13} fill {fill:.4f}  rank imbalance {imbalance:.5f}  {seconds:5.2f} s a million")
    stock = stock_imbalance(lengths, a_step)
    print(f"{'transformers':<13} fill      -  rank imbalance {stock:.5f}  (BatchRebalanceSampler, {a_step} a step)")
    fill, imbalance, seconds = middle["planned"]
    last_line(
        "planner", fill=fill, rank_imbalance=imbalance, seconds_per_million=seconds,
        greedy_fill=middle["greedy"][0], greedy_rank_imbalance=middle["greedy"][1],
    )  # fmt: skip


if __name__ == "__main__":
    main()
