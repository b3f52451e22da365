"""Every stage of a photo of 1920 x 1080 in the published sizes, and what these sizes are.

Widths and names are those of the published folders (config.json and the index of AIDC-AI/Ovis2.5-9B); nothing is
downloaded. The whole models run on the meta device, which has shapes and no numbers; a narrow model with the published
vocabulary runs for the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from bbu.families.ovis2_5.backbone import Ovis25
from bbu.families.ovis2_5.codec import INDICATORS, OVIS, Ovis25Sizes
from bbu.families.ovis2_5.model import OvisConfig, OvisModel
from bbu.families.ovis2_5.visual_head import Words
from bbu.families.prompts import PromptSpec
from bbu.families.registry import FAMILIES
from bbu.layers.attention import ATTENTION_BACKENDS
from tests.tiny import noise_photo, tiny_tokenizer

ROWS, COLUMNS = 68, 120  # patches of 1920 x 1088 pixels
PATCHES, TOKENS = ROWS * COLUMNS, ROWS * COLUMNS // 4
WORDS = 65536 - INDICATORS
TEXT = {  # of the published models: width, layers, MLP, heads; 8 key/value heads of 128 channels each; tied embeddings
    "2B": (2048, 28, 6144, 16, True),
    "9B": (4096, 36, 12288, 32, False),
}


def published(name: str) -> Ovis25:
    """A published model on the meta device."""
    width, layers, inner, heads, tied = TEXT[name]
    config = OvisConfig(
        llm_config={
            "vocab_size": 151936,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": tied,
        },
        image_token_id=151655,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
    )
    with torch.device("meta"):
        return Ovis25(OvisModel(config))


def names_of(name: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of a published folder and its shape."""
    width, layers, inner, heads, tied = TEXT[name]
    shapes: dict[str, tuple[int, ...]] = {
        "vte.weight": (65536, width),
        "llm.model.embed_tokens.weight": (151936, width),
    }
    shapes |= {"llm.model.norm.weight": (width,)} | ({} if tied else {"llm.lm_head.weight": (151936, width)})
    for layer in (f"llm.model.layers.{number}" for number in range(layers)):
        shapes |= {f"{layer}.{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}.mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{layer}.self_attn.{part}_norm.weight": (128,) for part in "qk"}
        shapes |= {f"{layer}.self_attn.{part}_proj.weight": (8 * 128, width) for part in "kv"}
        shapes |= {f"{layer}.self_attn.q_proj.weight": (heads * 128, width)}
        shapes |= {f"{layer}.self_attn.o_proj.weight": (width, heads * 128)}
    head, tower = "visual_tokenizer.head", "visual_tokenizer.vit.vision_model"
    shapes |= {f"{head}.0.weight": (WORDS, 4608), f"{head}.1.weight": (WORDS,), f"{head}.1.bias": (WORDS,)}
    shapes |= {f"{tower}.embeddings.patch_embedding.weight": (1152, 3, 16, 16)}
    shapes |= {f"{tower}.embeddings.patch_embedding.bias": (1152,)}
    shapes |= {f"{tower}.embeddings.position_embedding.weight": (1024, 1152)}
    shapes |= {f"{tower}.post_layernorm.{kind}": (1152,) for kind in ("weight", "bias")}
    for layer in (f"{tower}.encoder.layers.{number}" for number in range(27)):
        for kind in ("weight", "bias"):
            shapes |= {f"{layer}.layer_norm{number}.{kind}": (1152,) for number in (1, 2)}
        for part in ("q", "k", "v", "out"):
            shapes |= {f"{layer}.self_attn.{part}_proj.weight": (1152, 1152)}
            shapes |= {f"{layer}.self_attn.{part}_proj.bias": (1152,)}
        shapes |= {f"{layer}.mlp.fc1.weight": (4304, 1152), f"{layer}.mlp.fc1.bias": (4304,)}
        shapes |= {f"{layer}.mlp.fc2.weight": (1152, 4304), f"{layer}.mlp.fc2.bias": (1152,)}
    return shapes


@pytest.mark.parametrize(("name", "billions"), [("2B", 2.57), ("9B", 9.17)])
def test_names_shapes_and_numbers_of_the_published_weights(name: str, billions: float) -> None:
    backbone, wanted = published(name), names_of(name)
    tied = backbone.vlm.all_tied_weights_keys
    found = {key: tuple(value.shape) for key, value in backbone.vlm.state_dict().items() if key not in tied}
    assert found == wanted
    assert bool(tied) == TEXT[name][-1]
    parameters = dict(backbone.vlm.named_parameters())
    assert sum(p.numel() for p in parameters.values()) / 1e9 == pytest.approx(billions, abs=0.005)
    counts = {group: 0 for group in ("vision", "merger", "llm")}
    for key, parameter in parameters.items():
        counts[backbone.group_of(key)] += parameter.numel()
    width = TEXT[name][0]
    assert counts["vision"] / 1e6 == pytest.approx(414, abs=1)
    assert counts["merger"] == WORDS * (4608 + 2) + 65536 * width
    assert backbone.level_widths == [1152, width] and backbone.level_sides == [16, 32]
    assert (len(backbone.blocks("vision")), len(backbone.blocks("llm"))) == (27, TEXT[name][1])


def test_the_published_config_gives_the_published_model(tmp_path: Path) -> None:
    """config.json of AIDC-AI/Ovis2.5-9B, whose ids come from the tokenizer beside it."""
    llm = {
        "_attn_implementation_autoset": True, "_name_or_path": "Qwen/Qwen3-8B", "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 40960, "max_window_layers": 36,
        "model_type": "qwen3", "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
        "torch_dtype": "float32", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
    }  # fmt: skip
    vit = {
        "attention_dropout": 0.0, "fullatt_block_indexes": None, "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152, "hidden_stride": 2, "image_size": 512, "intermediate_size": 4304, "layer_norm_eps": 1e-06,
        "model_type": "siglip2_navit", "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 27,
        "num_patches": -1, "patch_size": 16, "preserve_original_pe": True, "temporal_patch_size": 1,
        "torch_dtype": "float32", "use_rope": True, "window_size": 112,
    }  # fmt: skip
    whole = {
        "architectures": ["Ovis2_5"], "auto_map": {"AutoConfig": "configuration_ovis2_5.Ovis2_5_Config"},
        "conversation_formatter_class": "Qwen3ConversationFormatter", "hidden_size": 4096, "vocab_size": 151936,
        "llm_config": llm, "model_type": "ovis2_5", "torch_dtype": "bfloat16", "transformers_version": "4.51.3",
        "use_cache": True, "visual_vocab_size": 65536, "vit_config": vit,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    tiny_tokenizer("ovis2_5").save_pretrained(tmp_path)
    with torch.device("meta"):
        backbone = Ovis25.empty(str(tmp_path))
    assert {key: tuple(value.shape) for key, value in backbone.vlm.state_dict().items()} == names_of("9B")
    assert backbone.vlm.config.llm_config.rope_parameters["rope_theta"] == 1000000
    assert backbone.options == {"tower_rotary": True}
    assert backbone.image_token_id == tiny_tokenizer("ovis2_5").get_vocab()["<|image_pad|>"]


def photo_of_1080_lines() -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Patch rows and grid, as the family's own plan makes them with its own limits."""
    limits = FAMILIES["ovis2_5"]
    plan = Ovis25.photo_plan("", PromptSpec.create("en", OVIS, limits.min_pixels, limits.max_pixels))
    image = noise_photo(0, 1920, 1080).image
    geometry = plan.plan(*image.size)
    assert (geometry.model_width, geometry.model_height) == (1920, 1088)
    rows_PX, grids = plan.patchify([image], [geometry])
    assert plan.text_tokens(len(rows_PX)) == TOKENS
    return rows_PX, tuple(grids[0].tolist())  # type: ignore[return-value]


def test_patches_of_the_photo() -> None:
    rows_PX, grid = photo_of_1080_lines()
    assert grid == (1, ROWS, COLUMNS) and tuple(rows_PX.shape) == (PATCHES, 768) == (8160, 3 * 16 * 16)
    assert rows_PX.min() >= -1 and rows_PX.max() <= 1


@pytest.fixture
def shapes_alone(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The one backend that reads its boundaries is replaced; shapes of the scores of words, chunk by chunk."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know the meta device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setitem(ATTENTION_BACKENDS, "sdpa", lambda query, key, value, *rest: query * 1)
    chunks: list[tuple[int, ...]] = []
    real: Callable[..., torch.Tensor] = Words.scores

    def scores(self: Words, joined: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        found = real(self, joined, dtype)
        chunks.append(tuple(found.shape))
        return found

    monkeypatch.setattr(Words, "scores", scores)
    return chunks


@pytest.mark.parametrize("name", list(TEXT))
def test_shapes_from_patches_to_logits(name: str, shapes_alone: list[tuple[int, ...]]) -> None:
    backbone, width = published(name), TEXT[name][0]
    seen: dict[str, tuple[int, ...]] = {}
    for path, module in backbone.vlm.named_modules():

        def keep(module: Any, inputs: Any, output: Any, path: str = path) -> None:
            if isinstance(output, torch.Tensor):
                seen[path] = tuple(output.shape)

        module.register_forward_hook(keep)
    grids, text = [(1, ROWS, COLUMNS)], 30
    ids = [7] * 10 + [151652] + [151655] * TOKENS + [151653] + [7] * 20
    rows_PX = torch.empty(PATCHES, 768, device="meta")
    with torch.no_grad():
        states_PD = backbone.tower_states(rows_PX, grids)
        joined = backbone._joined(states_PD)
        fine, coarse = backbone.levels_of(states_PD, grids)
        positions = backbone.position_function()(ids, grids)
        embeds = backbone._embed(torch.tensor([ids], device="meta"), [fine, coarse])
        hidden_TD = backbone.read(
            torch.tensor([ids], device="meta"), positions[:, None].to("meta"), [fine, coarse],
            torch.tensor([0, len(ids)], dtype=torch.int32, device="meta"), len(ids),
        )  # fmt: skip
        logits = hidden_TD @ backbone.lm_head_weight.T
    tower = "visual_tokenizer.vit.vision_model"
    assert seen[f"{tower}.embeddings.patch_embedding"] == (8160, 1152)
    block = f"{tower}.encoder.layers.26"
    assert seen[f"{block}.self_attn.q_proj"] == (8160, 16 * 72) and seen[f"{block}.self_attn.out_proj"] == (8160, 1152)
    assert seen[f"{block}.mlp.fc1"] == (8160, 4304) and seen[block] == (8160, 1152) == tuple(states_PD.shape)
    assert tuple(joined.shape) == (2040, 4 * 1152)
    assert {words for _, words in shapes_alone} == {65532} and sum(rows for rows, _ in shapes_alone) == 2040
    assert max(rows for rows, _ in shapes_alone) == 256
    assert tuple(fine.tokens_SD.shape) == (8160, 1152) and fine.grids == [(68, 120)]
    assert tuple(coarse.tokens_SD.shape) == (2040, width) and coarse.grids == [(34, 60)]
    assert tuple(positions.shape) == (1, 2040 + 2 + text)
    assert tuple(embeds.shape) == (1, 2040 + 2 + text, width)
    assert seen["llm.model.layers.0.self_attn.k_proj"] == (1, 2072, 8 * 128)
    assert tuple(hidden_TD.shape) == (2072, width) and tuple(logits.shape) == (2072, 151936)


def test_probabilities_of_the_photos_tokens_sum_to_one_and_their_embeddings_are_means() -> None:
    """A narrow tower and language model beside the published vocabulary of words."""
    torch.manual_seed(0)
    sizes = Ovis25Sizes(
        vision_width=8, vision_depth=1, vision_heads=1, vision_positions=32, visual_vocab=65536, text_width=16,
        text_depth=1, text_heads=1, text_kv_heads=1,
    )  # fmt: skip
    known = tiny_tokenizer("ovis2_5").get_vocab()
    backbone = Ovis25.from_scratch(sizes, len(known), known)
    rows_PX, grid = photo_of_1080_lines()
    with torch.no_grad():
        states_PD = backbone.tower_states(rows_PX, [grid])
        fine, coarse = backbone.levels_of(states_PD, [grid])
        joined, words = backbone._joined(states_PD), backbone.vlm.visual_tokenizer.words
        checked = 0
        for rows in torch.arange(TOKENS).split(256):
            shares = words.normed(words.scores(joined[rows], torch.float32)).softmax(-1)
            assert shares.dtype == torch.float32 and tuple(shares.shape) == (len(rows), 65532)
            torch.testing.assert_close(shares.double().sum(-1), torch.ones(len(rows)).double(), rtol=0, atol=1e-5)
            checked += len(rows)
            if checked == 256:
                expected = shares @ backbone.vlm.vte.weight[:-4]
                torch.testing.assert_close(coarse.tokens_SD[:256], expected, rtol=1e-4, atol=1e-5)
        assert checked == 2040 and tuple(coarse.tokens_SD.shape) == (2040, 16)
        ids = [known["<|vision_start|>"]] + [known["<|image_pad|>"]] * TOKENS + [known["<|vision_end|>"]]
        embeds = backbone._embed(torch.tensor([ids]), [fine, coarse])[0]
    assert tuple(embeds.shape) == (2040 + 2, 16)
    assert torch.equal(embeds[0], backbone.vlm.vte.weight[-4]) and torch.equal(embeds[-1], backbone.vlm.vte.weight[-3])
    assert torch.equal(embeds[1:-1], coarse.tokens_SD)
