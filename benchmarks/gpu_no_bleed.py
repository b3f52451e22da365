"""Packing never changes a sample, in bfloat16 on every attention backend that runs here.

Called by benchmarks/gpu.py. The float64 tests of tests/models/test_no_bleed.py ask for equality; 16-bit kernels round
differently for differently shaped inputs, so here

- nothing of a sample's outputs may depend on another sample at all: gradients across samples are exactly zero;
- outputs and parameter gradients of packed samples may be no further from a float64 run of each sample alone than those
  of a bfloat16 run of each sample alone, within a factor of NOISE;
- the same checks must fail where the boundaries between samples are taken away: they see what they look for.

All image tokens become queries, so that rounding does not decide which do; queries are compared in the order in which
they fit the float64 run's best. The models are tiny, of the real classes.

Shapes: D feature width, T packed tokens.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any

import torch
from gpu_machine import Findings, Setting, in_words
from gpu_model import PROJECT
from scipy.optimize import linear_sum_assignment

from bbu.data.chat_processor import ChatProcessorOutput
from bbu.data.collators import Batch
from bbu.inference.postprocess import model_inputs
from bbu.layers.attention import ATTENTION_BACKENDS, choose_attention_backend
from bbu.models.wrapper import DetectionOutput, DetectionVLM

NOISE = 2.0  # factor between the errors of two runs that round differently
LEAST_ERROR = 2e-3  # relative; bfloat16 rounds to 2^-9
LEAST_GRADIENT_ERROR = 1.5e-2
CAPTION_TOKENS = 4
Outcome = dict[str, torch.Tensor]


def use_our_tests() -> None:
    """Python prefers an installed package named tests to a folder without __init__.py, wherever it is on the path."""
    found = importlib.util.find_spec("tests")
    if found is None or str(PROJECT / "tests") not in list(found.submodule_search_locations or []):
        package = types.ModuleType("tests")
        package.__path__ = [str(PROJECT / "tests")]
        sys.modules["tests"] = package


def no_bleed(setting: Setting, findings: Findings) -> None:
    """Every backend by itself; then, for themselves, the backends' parity with a plain softmax.

    Quick: the backend that is chosen here, with the first family, alone.
    """
    use_our_tests()
    from tests.tiny import FAMILIES

    backends, passed = setting.backends(), []
    if setting.quick:
        backends = [choose_attention_backend("auto", setting.device, torch.bfloat16)]
    for family in [*FAMILIES][: 1 if setting.quick else None]:
        case = Case(setting, family)
        for backend in backends:
            try:
                found = check(case, backend)
            except Exception as error:  # the other backends go on
                found = {"passed": False, "error": in_words(error)}
            passed.append(found["passed"])
            findings.add(**{f"{backend} {family}": found})
    findings.add(passed=all(passed))
    if not setting.quick:
        findings.add(parity=backend_parity(setting))


class Case:
    """Samples of a family, and what each of them alone gives in float64."""

    def __init__(self, setting: Setting, family: str) -> None:
        from tests.models.test_no_bleed import context_sample
        from tests.tiny import mixed_samples, tiny_model, tiny_processor

        self.setting, self.family = setting, family
        self.samples = [*mixed_samples(tiny_processor(family)), context_sample(family)]
        tokens = max(int(sample.image_grid_thw[-1].prod()) for sample in self.samples)
        self.options: dict[str, Any] = {"model": {"detection.queries": tokens * 5 // 4}}  # both vision levels
        exact = Runner(tiny_model(family, torch.float64, **self.options), setting, low=False)
        self.reference = [exact.outcomes([sample])[0] for sample in self.samples]
        self.gradients = exact.gradients(self.samples, [[n] for n in range(len(self.samples))])


def check(case: Case, backend: str) -> dict[str, Any]:
    """Errors and leaks of one backend, and whether they are what they should be."""
    from tests.tiny import tiny_model

    samples, reference, true_gradients = case.samples, case.reference, case.gradients
    runner = Runner(tiny_model(case.family, torch.float32, backend, **case.options), case.setting, low=True)
    everything = list(range(len(samples)))
    alone = [runner.outcomes([sample])[0] for sample in samples]
    groupings = [[everything], [everything[::-1]], [everything[::2], everything[1::2]]]
    errors_alone = errors(alone, reference)
    packed = [errors(runner.regrouped(samples, groups), reference) for groups in groupings]
    worst = {name: max(each[name] for each in packed) for name in errors_alone}
    gradients_alone = gradient_errors(runner.gradients(samples, [[n] for n in everything]), true_gradients)
    gradients_packed = gradient_errors(runner.gradients(samples, [everything]), true_gradients)
    bled = errors(runner.outcomes(samples, boundaries=False), reference)
    gradients_bled = gradient_errors(runner.gradients(samples, [everything], boundaries=False), true_gradients)
    leak, leak_without_boundaries = runner.leak(samples), runner.leak(samples, boundaries=False)
    values_hold = within_noise(worst, errors_alone, LEAST_ERROR)
    gradients_hold = within_noise(gradients_packed, gradients_alone, LEAST_GRADIENT_ERROR)
    seen = (
        not within_noise(bled, errors_alone, LEAST_ERROR)
        and not within_noise(gradients_bled, gradients_alone, LEAST_GRADIENT_ERROR)
        and leak_without_boundaries > 0
    )
    return {
        "passed": values_hold and gradients_hold and leak == 0 and seen,
        "error_packed": worst,
        "error_alone": errors_alone,
        "gradient_error_packed": gradients_packed,
        "gradient_error_alone": gradients_alone,
        "gradient_across_samples": leak,
        "without_boundaries": {
            "error": bled,
            "gradient_error": gradients_bled,
            "gradient_across_samples": leak_without_boundaries,
        },
    }


def errors(found: Sequence[Outcome], reference: Sequence[Outcome]) -> dict[str, float]:
    """Kind of output → ‖found − reference‖ / ‖reference‖ over all samples."""
    ordered = [in_order_of(one, other) for one, other in zip(found, reference, strict=True)]
    return {
        name: relative([one[name] for one in ordered], [other[name] for other in reference]) for name in reference[0]
    }


def relative(found: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Not a number in what was found gives infinity: it never passes."""
    one, other = (torch.cat([part.flatten() for part in parts]).double() for parts in (found, reference))
    error = float((one - other).norm() / other.norm())
    return error if error == error else float("inf")


def in_order_of(found: Outcome, reference: Outcome) -> Outcome:
    """The queries in the order in which they fit the reference's best."""
    theirs, ours = (torch.cat((each["boxes"].flatten(1), each["objectness"]), 1) for each in (reference, found))
    cost = torch.cdist(theirs, ours, p=1).cpu().nan_to_num(1e9).numpy()
    order = torch.from_numpy(linear_sum_assignment(cost)[1])
    by_query = ("boxes", "objectness", "captions")
    return {name: value[order.to(value.device)] if name in by_query else value for name, value in found.items()}


def gradient_errors(found: dict[str, list[torch.Tensor]], reference: dict[str, list[torch.Tensor]]) -> dict[str, float]:
    """Learning-rate group → relative error of its gradients."""
    return {group: relative(found[group], reference[group]) for group in reference}


def within_noise(packed: dict[str, float], alone: dict[str, float], least: float) -> bool:
    """Whether nothing is further off than a run of each sample alone may be."""
    return all(packed[name] <= max(NOISE * alone[name], least) for name in alone)


class Runner:
    """A model and how it computes.

    Args:
        low: matrix products in bfloat16, as in training; else in the weights' own type.
    """

    def __init__(self, model: DetectionVLM, setting: Setting, *, low: bool) -> None:
        self.model, self.device, self.low = model.to(setting.device), setting.device, low
        self.dtype = next(model.parameters()).dtype

    def batch(self, samples: Sequence[ChatProcessorOutput], boundaries: bool = True) -> Batch:
        """A pack on the device; without boundaries all its tokens are one segment of the language model."""
        from tests.tiny import pack

        batch = pack(self.model, samples)
        if not boundaries:
            length = batch["input_ids"].shape[1]
            batch |= {"cu_seqlens": torch.tensor([0, length], dtype=torch.int32), "max_seqlen": length}
        return batch

    def run(self, batch: Batch, pixels: torch.Tensor | None = None) -> DetectionOutput:
        inputs = model_inputs(batch, self.device)
        inputs["pixel_values"] = inputs["pixel_values"] if pixels is None else pixels
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            return self.model(**inputs)  # type: ignore[no-any-return]

    def split(self, output: DetectionOutput, lengths: Sequence[int]) -> list[Outcome]:
        """What is compared of each sample: (Q, K, 4) boxes, (Q, K) objectness and so on."""
        hidden = output.hidden_TD.split(list(lengths))
        proposals = output.proposals.boxes.split(output.proposal_counts)
        proposal_objectness = output.proposals.objectness.split(output.proposal_counts)
        samples, queries = output.pred_objectness.shape
        ids = torch.arange(queries * CAPTION_TOKENS, device=self.device).reshape(queries, CAPTION_TOKENS) % 300 + 30
        found = []
        for number in range(samples):
            where = torch.full((queries,), number, device=self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
                logits = hidden[number] @ self.model.backbone.lm_head_weight.T
                # every query has the same caption: which query is which differs between runs
                caption = ids[:1].expand_as(ids)
                chosen = output.at(where, torch.arange(queries, device=self.device))
                states = self.model.describe_states(output.memory, where, chosen, caption)
            found.append(
                {
                    "lm_logits": logits,
                    "boxes": output.layers.boxes[:, number].transpose(0, 1),
                    "objectness": output.layers.objectness[:, number].T,
                    "proposal_boxes": proposals[number],
                    "proposal_objectness": proposal_objectness[number],
                    "captions": states,
                }
            )
        return found

    @torch.no_grad()
    def outcomes(self, samples: Sequence[ChatProcessorOutput], boundaries: bool = True) -> list[Outcome]:
        found = self.split(self.run(self.batch(samples, boundaries)), [len(sample.input_ids) for sample in samples])
        return [{name: value.double() for name, value in one.items()} for one in found]

    def regrouped(self, samples: Sequence[ChatProcessorOutput], groups: Sequence[Sequence[int]]) -> list[Outcome]:
        """Outcomes in the order of the samples, however they were packed."""
        by_number: dict[int, Outcome] = {}
        for group in groups:
            by_number |= dict(zip(group, self.outcomes([samples[n] for n in group]), strict=True))
        return [by_number[number] for number in range(len(samples))]

    def gradients(
        self, samples: Sequence[ChatProcessorOutput], groups: Sequence[Sequence[int]], boundaries: bool = True
    ) -> dict[str, list[torch.Tensor]]:
        """Learning-rate group → its parameters' gradients of all samples' scores together."""
        self.model.zero_grad(set_to_none=True)
        for group in groups:
            chosen = [samples[number] for number in group]
            output = self.run(self.batch(chosen, boundaries))
            found = self.split(output, [len(sample.input_ids) for sample in chosen])
            torch.stack([score(one) for one in found]).sum().backward()
        by_group: dict[str, list[torch.Tensor]] = {}
        left_out = self._layer_norms() if self.device.type == "cpu" else set()
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and name not in left_out:
                by_group.setdefault(self.model.group_of(name), []).append(parameter.grad.double())
        return by_group

    def _layer_norms(self) -> set[str]:
        """Parameters whose gradients a CPU sums in bfloat16, the worse the more rows are packed."""
        norms = [name for name, module in self.model.named_modules() if isinstance(module, torch.nn.LayerNorm)]
        return {f"{name}.{parameter}" for name in norms for parameter in ("weight", "bias")}

    def leak(self, samples: Sequence[ChatProcessorOutput], boundaries: bool = True) -> float:
        """Largest gradient of any sample's outputs by what another sample of its pack says or shows.

        Raises:
            AssertionError: the outputs do not depend on their own sample either.
        """
        batch = self.batch(samples, boundaries)
        pixels = batch["pixel_values"].to(self.device).requires_grad_()
        embedded: list[torch.Tensor] = []

        def keep(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            embedded.append(output.detach().requires_grad_())
            return embedded[-1]

        hook = self.model.backbone.token_embedding.register_forward_hook(keep)
        try:
            output = self.run(batch, pixels)
        finally:
            hook.remove()
        lengths = [len(sample.input_ids) for sample in samples]
        patches = [len(sample.pixel_values) for sample in samples]
        worst = 0.0
        for number, outcome in enumerate(self.split(output, lengths)):
            found = torch.autograd.grad(score(outcome), (embedded[0], pixels), retain_graph=True)
            for gradient, rows in zip((found[0][0], found[1]), (lengths, patches), strict=True):
                parts = gradient.abs().nan_to_num(float("inf")).split(rows)
                assert float(parts[number].sum()) > 0, "outputs do not depend on their own sample"
                others = [float(part.max()) for place, part in enumerate(parts) if place != number]
                worst = max(worst, *others)
        return worst


def score(outcome: Outcome) -> torch.Tensor:
    """A smooth number of all of a sample's outputs that does not depend on the order of its queries."""
    return torch.stack([value.float().square().mean() for value in outcome.values()]).sum()


# ---------------------------------------------------------------- backends


def backend_parity(setting: Setting) -> dict[str, Any]:
    """The cases of tests/layers/test_attention.py: every backend against a plain masked softmax."""
    from tests.layers.test_attention import DEVICE, PARITY, test_a_backend_equals_a_plain_masked_softmax

    failures, ran = [], 0
    for backend, case, causal in PARITY:
        for heads in (4, 2, 1):
            for scale in (None, 0.3):
                ran += 1
                try:
                    test_a_backend_equals_a_plain_masked_softmax(backend, case, causal, heads, scale)
                except Exception as error:
                    words = f"{backend}, {case}, causal {causal}, {heads} heads, scale {scale}: {error}"
                    failures.append(" ".join(words.split())[:300])
    backends = sorted({backend for backend, *_ in PARITY}, key=list(ATTENTION_BACKENDS).index)
    same_device = DEVICE.type == setting.device.type
    return {"passed": not failures and same_device, "ran": ran, "backends": backends, "failures": failures}
