"""Ovis2.5 as a Backbone equals what transformers has of its parts.

These are VideoLlama3's and SigLIP's encoders, Qwen3's language model, and the visual head of Ovis2.

transformers has no Ovis2.5. Ovis2's head differs in what surrounds it: its tower ends in a norm, its photos are squares
of one size, it has five indicators and takes the softmax in the scores' own precision. None of that matters in float64
on square photos with four indicators and states that are given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Ovis2Config,
    Ovis2Model,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    VideoLlama3VisionConfig,
    VideoLlama3VisionModel,
)
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

from bbu.families.feature_cache import FeatureCache
from bbu.families.generation import Prompt
from bbu.families.ovis2_5.backbone import Ovis25, plain_positions
from bbu.families.ovis2_5.codec import INDICATORS, NO_THOUGHT, OVIS, Ovis25Options, cost_of
from bbu.models.build import build_model, freeze
from bbu.models.checkpoint import load_model, save_model
from tests.tiny import (
    Conversation,
    build_tiny,
    conversation,
    noise_photo,
    run_backbone,
    tiny_config,
    tiny_model,
    tiny_processor,
    tiny_sample,
    tiny_spec,
    tiny_tokenizer,
)

FAMILY = "ovis2_5"
SIZES = [[], [(128, 128)], [(192, 160)], [(64, 96), (160, 224), (32, 64)], [(288, 32)], [(32, 32)]]


@cache
def backbone() -> Ovis25:
    found = tiny_model(FAMILY).backbone
    assert isinstance(found, Ovis25)
    return found


@cache
def all_conversations() -> list[Conversation]:
    parts = [conversation(backbone(), seed, 1 + 4 * (seed % 3), sizes) for seed, sizes in enumerate(SIZES)]
    return [*parts, Conversation(torch.tensor([33]))]  # a sample of one token


@cache
def stock_tower() -> Any:
    """VideoLlama3's tower with our weights; learned positions and the states before its last norm are ours to take."""
    vit = backbone().vlm.config.vit_config
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    config = VideoLlama3VisionConfig(**{name: getattr(vit, name) for name in names})
    config._attn_implementation = "sdpa"
    model = VideoLlama3VisionModel(config).double().eval()
    missing, unexpected = model.load_state_dict(backbone().vlm.vision_model.state_dict(), strict=False)
    assert not missing and unexpected == ["embeddings.position_embedding.weight"]
    return model


def in_units(raster: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Rows in raster order → 2 x 2 by 2 x 2, from the description of the image processor alone."""
    order = [
        (top + y) * columns + left + x
        for top in range(0, rows, 2)
        for left in range(0, columns, 2)
        for y in range(2)
        for x in range(2)
    ]
    return raster[torch.tensor(order)]


def learned_positions(grids: Sequence[tuple[int, int, int]]) -> torch.Tensor:
    """(P, D): torch resizes the table for each photo."""
    table = backbone().vlm.vision_model.embeddings.position_embedding.weight
    side = round(len(table) ** 0.5)
    square = table.T.reshape(1, -1, side, side)
    resized = (F.interpolate(square, (h, w), mode="bicubic", align_corners=False)[0] for _, h, w in grids)
    return torch.cat([in_units(one.flatten(1).T, h, w) for one, (_, h, w) in zip(resized, grids, strict=True)])


def stock_states(part: Conversation) -> torch.Tensor:
    """(P, D) states of the last block, in the order of the patch rows."""
    tower = stock_tower()
    assert part.patches is not None and part.grids is not None
    with torch.no_grad():
        states = tower.embeddings(part.patches.double()) + learned_positions(part.grid_list)
        rotation = tower.rotary_pos_emb(states, get_vision_position_ids(part.grids, 2))
        edges = get_vision_cu_seqlens(part.grids)
        seen = tower.encoder(states, cu_seqlens=edges, max_seqlen=None, position_embeddings=rotation)
    return seen.last_hidden_state  # type: ignore[no-any-return]


def plain_soft_tokens(states: torch.Tensor) -> torch.Tensor:
    """(S, W) embeddings, all probabilities at once."""
    vlm = backbone().vlm
    shares = vlm.visual_tokenizer.head(states.reshape(len(states) // 4, -1)).softmax(-1)
    return shares @ vlm.vte.weight[:-INDICATORS]  # type: ignore[no-any-return]


# ---------------------------------------------------------------- parity


def test_the_tower_equals_video_llama_3s_encoder_with_resized_learned_positions() -> None:
    for part in all_conversations():
        if part.patches is not None:
            with torch.no_grad():
                ours = backbone().tower_states(part.patches.double(), part.grid_list)
            torch.testing.assert_close(ours, stock_states(part), rtol=1e-9, atol=1e-9)


def test_without_rotary_positions_and_on_the_native_grid_the_tower_equals_siglips_encoder() -> None:
    ours = tiny_model(FAMILY).backbone
    ours.use_options(Ovis25Options(tower_rotary=False))
    vit = ours.vlm.config.vit_config  # type: ignore[union-attr]
    side = vit.image_size // vit.patch_size + 1  # of 5 patches no photo is made: 6 instead
    native = torch.randn(side**2, vit.hidden_size, dtype=torch.float64)
    tower = ours.vlm.vision_model  # type: ignore[union-attr]
    tower.embeddings.position_embedding = nn.Embedding.from_pretrained(native, freeze=True)
    vit.image_size = side * vit.patch_size
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
    config = SiglipVisionConfig(vision_use_head=False, **{name: getattr(vit, name) for name in names})
    config._attn_implementation = "sdpa"
    siglip = SiglipVisionModel(config).double().eval()
    missing, unexpected = siglip.load_state_dict(tower.state_dict(), strict=False)
    assert not unexpected and not [name for name in missing if "position_ids" not in name]

    pixels = torch.randn(1, 3, vit.image_size, vit.image_size, dtype=torch.float64)
    cut = pixels[0].view(3, side, 16, side, 16).permute(1, 3, 0, 2, 4).reshape(side**2, -1)
    with torch.no_grad():
        theirs = siglip.encoder(inputs_embeds=siglip.embeddings(pixels)).last_hidden_state[0]
        found = ours.tower_states(in_units(cut, side, side), [(1, side, side)])
        ours.use_options(Ovis25Options())
        turned = ours.tower_states(in_units(cut, side, side), [(1, side, side)])
    torch.testing.assert_close(found, in_units(theirs, side, side), rtol=1e-9, atol=1e-9)
    assert (turned - found).abs().max() > 1e-3, "rotary positions change nothing"


def test_head_softmax_and_table_equal_those_of_ovis2() -> None:
    ours, vlm = backbone(), backbone().vlm
    width, rows = vlm.config.vit_config.hidden_size, 6
    config = Ovis2Config(
        vision_config={
            "hidden_size": width,
            "num_hidden_layers": 0,
            "num_attention_heads": 2,
            "vocab_size": vlm.config.visual_vocab_size,
            "hidden_stride": 2,
            "num_visual_indicator_tokens": INDICATORS,
        },
        text_config={"model_type": "qwen2", "hidden_size": vlm.config.hidden_size, "num_hidden_layers": 0},
        hidden_size=vlm.config.hidden_size,
    )
    stock = Ovis2Model(config).double().eval()
    head = vlm.visual_tokenizer.head
    stock.vision_tower.head_linear.load_state_dict(head[0].state_dict())
    stock.vision_tower.head_norm.load_state_dict(head[1].state_dict())
    stock.visual_embeddings_table.load_state_dict(vlm.vte.state_dict())
    states = torch.randn(2, rows**2, width, dtype=torch.float64)
    stock.vision_tower.transformer.forward = lambda pixels, **_: (states,)  # type: ignore[method-assign, assignment]
    with torch.no_grad():
        theirs = stock.get_image_features(torch.zeros(2, 3, 8, 8, dtype=torch.float64))
        units = torch.cat([in_units(photo, rows, rows) for photo in states])
        soft = ours.levels_of(units, [(1, rows, rows)] * 2)[1].tokens_SD
    torch.testing.assert_close(soft, theirs.pooler_output.flatten(0, 1), rtol=1e-9, atol=1e-9)
    assert torch.equal(vlm.vte.weight[-INDICATORS:], theirs.visual_indicator_features)


def stock_logits(part: Conversation) -> torch.Tensor:
    """(L, V) of Qwen3's unchanged class on one sample, whose embeddings are put together token by token."""
    vlm = backbone().vlm
    config = type(vlm.config.llm_config).from_dict(vlm.config.llm_config.to_dict())
    config._attn_implementation = "sdpa"
    stock = Qwen3ForCausalLM(config).double().eval()
    stock.load_state_dict(vlm.llm.state_dict())
    soft = iter(plain_soft_tokens(stock_states(part)) if part.patches is not None else [])
    known = tiny_tokenizer(FAMILY).get_vocab()
    rows = []
    for token in part.ids.tolist():
        if token == known["<|image_pad|>"]:
            rows.append(next(soft))
        elif token in (known["<|vision_start|>"], known["<|vision_end|>"]):
            rows.append(vlm.vte.weight[-4 if token == known["<|vision_start|>"] else -3])
        else:
            rows.append(stock.get_input_embeddings().weight[token])
    assert next(soft, None) is None
    with torch.no_grad():
        return stock(inputs_embeds=torch.stack(rows)[None], use_cache=False).logits[0]  # type: ignore[no-any-return]


def test_packed_logits_equal_those_of_the_stock_language_model_on_each_sample() -> None:
    parts = all_conversations()
    with torch.no_grad():
        hidden = run_backbone(backbone(), parts).hidden_TD
    logits = (hidden @ backbone().lm_head_weight.T).split([len(part.ids) for part in parts])
    for number, (part, ours) in enumerate(zip(parts, logits, strict=True)):
        torch.testing.assert_close(ours, stock_logits(part), rtol=1e-9, atol=1e-9, msg=lambda t, n=number: f"{n}: {t}")


def test_generated_text_is_what_the_stock_language_model_finds_likeliest_each_time() -> None:
    parts = [all_conversations()[number] for number in (3, 1, 0)]
    empty = torch.zeros(0, 768, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.long)
    prompts = [
        Prompt(part.ids, *(empty if part.grids is None or part.patches is None else (part.patches, part.grids)))
        for part in parts
    ]
    written = backbone().generate(prompts, end_token_id=2, max_new_tokens=5, min_new_tokens=5)
    for part, ids in zip(parts, written, strict=True):
        assert len(ids) == 5
        for number, token in enumerate(ids):
            so_far = Conversation(torch.cat([part.ids, torch.tensor(ids[:number])]).long(), part.patches, part.grids)
            scores = stock_logits(so_far)[-1]
            scores[2] = -torch.inf  # the end may not come yet
            assert int(scores.argmax()) == token


# ---------------------------------------------------------------- raster order


def test_vision_levels_are_in_raster_order_before_and_after_the_join() -> None:
    parts = [part for part in all_conversations() if part.patches is not None]
    with torch.no_grad():
        fine, coarse = run_backbone(backbone(), parts).vision_levels
    grids = [grid for part in parts for grid in part.grid_list]
    assert fine.grids == [(h, w) for _, h, w in grids] and coarse.grids == [(h // 2, w // 2) for _, h, w in grids]
    states = torch.cat([stock_states(part) for part in parts])
    by_photo = zip(
        grids, states.split([h * w for _, h, w in grids]), fine.tokens_SD.split([h * w for _, h, w in grids]),
        coarse.tokens_SD.split([h * w // 4 for _, h, w in grids]), strict=True,
    )  # fmt: skip
    for (_, h, w), expected, before, after in by_photo:
        torch.testing.assert_close(in_units(before, h, w), expected, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            torch.testing.assert_close(after, plain_soft_tokens(expected), rtol=1e-9, atol=1e-9)


def test_a_token_of_each_level_lies_where_its_pixels_lie() -> None:
    """Without attention a token sees its own pixels alone, so painting a patch must change that token alone."""
    model = tiny_model(FAMILY).backbone
    with torch.no_grad():
        for block in model.blocks("vision"):
            block.self_attn.out_proj.weight.zero_()  # type: ignore[union-attr]
    part = conversation(model, 7, 2, [(192, 160)])
    assert part.patches is not None and part.grid_list == [(1, 10, 12)]
    with torch.no_grad():
        before = run_backbone(model, [part]).vision_levels
    for patch in (0, 1, 2, 3, 4, 59, 60, 62, 119):
        unit, inner = divmod(patch, 4)
        row, column = unit // 6 * 2 + inner // 2, unit % 6 * 2 + inner % 2
        painted = part.patches.clone()
        painted[patch] += 1.0
        with torch.no_grad():
            after = run_backbone(model, [Conversation(part.ids, painted, part.grids)]).vision_levels
        for level, place in ((0, row * 12 + column), (1, row // 2 * 6 + column // 2)):
            moved = (after[level].tokens_SD - before[level].tokens_SD).abs().amax(1) > 1e-9
            assert moved.nonzero().flatten().tolist() == [place], (level, patch)


# ---------------------------------------------------------------- visual words


def test_visual_words_are_the_likeliest_ones_on_each_photos_grid() -> None:
    part = all_conversations()[3]
    assert part.patches is not None and part.grids is not None
    found = backbone().visual_words(part.patches, part.grids)
    shares = backbone().vlm.visual_tokenizer.head(stock_states(part).reshape(-1, 128)).softmax(-1).detach()
    assert [tuple(photo.words_YZ.shape) for photo in found] == [(3, 2), (7, 5), (2, 1)]
    assert all(photo.entropy_YZ.shape == photo.words_YZ.shape for photo in found)
    words = torch.cat([photo.words_YZ.flatten() for photo in found])
    entropies = torch.cat([photo.entropy_YZ.flatten() for photo in found])
    assert torch.equal(words, shares.argmax(-1)) and len(set(words.tolist())) > 3
    torch.testing.assert_close(entropies, -(shares * shares.log()).sum(-1), rtol=1e-9, atol=1e-9)
    assert (entropies > 0).all() and (entropies < torch.tensor(shares.shape[1]).log()).all()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "toy"])
def test_a_family_without_a_visual_vocabulary_has_no_words(family: str) -> None:
    model = tiny_model(family).backbone
    part = conversation(model, 1, 2, [(112, 84)])
    assert part.patches is not None and part.grids is not None
    assert model.visual_words(part.patches, part.grids) is None


# ---------------------------------------------------------------- text


def test_a_sample_has_the_empty_thought_in_every_answers_header_and_no_loss_on_it() -> None:
    processor = tiny_processor(FAMILY)
    sample = tiny_sample(processor, 1, teachers=2)
    text = processor.tokenizer.decode(sample.input_ids)
    assert text.count(NO_THOUGHT) == 3 and OVIS.answer_header.endswith(NO_THOUGHT)
    spans = [*sample.teacher_spans, sample.student_span]
    assert len(spans) == 3
    for span in spans:
        assert span is not None
        answer = processor.tokenizer.decode(sample.input_ids[slice(*span)])
        assert answer.startswith("[") and answer.endswith("<|im_end|>")
        assert processor.tokenizer.decode(sample.input_ids[: span[0]]).endswith(NO_THOUGHT)
    assert (sample.labels != -100).sum() == sum(stop - start for start, stop in spans)  # type: ignore[misc]


def test_a_prompt_ends_where_an_answer_without_thought_begins() -> None:
    processor = tiny_processor(FAMILY)
    sample = tiny_sample(processor, 1, with_answer=False)
    text = processor.tokenizer.decode(sample.input_ids)
    photo = text.index("<|vision_start|>")
    assert text.startswith("<|im_start|>system\nLook.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|>")
    assert text[photo:].endswith("<|vision_end|>\nList the parts.<|im_end|>\n" + OVIS.answer_header)


def test_positions_count_up_and_image_tokens_that_do_not_fit_the_grids_are_an_error() -> None:
    part = all_conversations()[3]
    found = backbone().position_function()(part.ids.tolist(), part.grid_list)
    assert torch.equal(found, torch.arange(len(part.ids))[None])
    for ids, grids in (([5, 9, 9], []), ([5, 9], [(1, 2, 4)]), ([5], [(1, 2, 2)])):
        with pytest.raises(ValueError, match="image tokens, and the image grids account for"):
            plain_positions(ids, grids, image_token_id=9, unit=4)


# ---------------------------------------------------------------- options


def test_the_options_come_from_the_config_and_stay_in_the_folder(tmp_path: Path) -> None:
    for rotary in (True, False):
        config = tiny_config(model={"family": FAMILY, "options": {} if rotary else {"tower_rotary": False}})
        model = build_model(config, tiny_tokenizer(FAMILY), device=torch.device("cpu"), dtype=torch.float32)
        model.backbone.save(tmp_path / str(rotary))
        loaded = Ovis25.from_pretrained(str(tmp_path / str(rotary)), torch.float32)
        assert dict(loaded.options) == dict(model.backbone.options) == {"tower_rotary": rotary}
        written = json.loads((tmp_path / str(rotary) / "config.json").read_text())
        assert written["vit_config"]["use_rope"] is rotary


def test_adapters_alone_keep_the_options_that_they_were_trained_with(tmp_path: Path) -> None:
    base = tmp_path / "base"
    build_tiny(tiny_config(model={"family": FAMILY})).backbone.save(base)
    tiny_tokenizer(FAMILY).save_pretrained(base)
    config = tiny_config(model={"family": FAMILY, "path": str(base), "options": {"tower_rotary": False}})
    config.model.lora.parts = ["llm", "vision"]
    model = build_model(config, tiny_tokenizer(FAMILY), device=torch.device("cpu"), dtype=torch.float32)
    save_model(tmp_path / "model", model, tiny_processor(FAMILY), adapters=True)
    assert json.loads((base / "config.json").read_text())["vit_config"]["use_rope"] is True
    assert dict(load_model(tmp_path / "model").backbone.options) == {"tower_rotary": False}


def test_a_run_that_starts_from_a_model_has_the_options_of_its_own_config(tmp_path: Path) -> None:
    config = tiny_config(model={"family": FAMILY, "options": {"tower_rotary": False}})
    first = build_model(config, tiny_tokenizer(FAMILY), device=torch.device("cpu"), dtype=torch.float32)
    save_model(tmp_path / "first", first, tiny_processor(FAMILY))
    config.model.start, config.model.options = str(tmp_path / "first"), {}
    second = build_model(config, tiny_tokenizer(FAMILY), device=torch.device("cpu"), dtype=torch.float32)
    assert dict(second.backbone.options) == {"tower_rotary": True}
    assert torch.equal(second.backbone.vlm.vte.weight, first.backbone.vlm.vte.weight)


def test_states_with_and_without_rotary_positions_are_not_kept_under_one_name(tmp_path: Path) -> None:
    model = tiny_model(FAMILY, torch.float32)
    freeze(model, ["vision"])
    model.backbone.feature_cache = FeatureCache(tmp_path)
    part = conversation(model.backbone, 1, 2, [(128, 96)])
    assert part.patches is not None and part.grids is not None
    found = []
    for rotary in (True, False, True):
        model.backbone.use_options(Ovis25Options(tower_rotary=rotary))
        found.append(model.backbone.see(part.patches, part.grids, ["photo"])[0].tokens_SD)
    assert not torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert len(list(tmp_path.glob("*/*"))) == 2 and model.backbone.feature_cache.read == 1


# ---------------------------------------------------------------- cost


def test_the_cost_model_counts_what_torch_counts() -> None:
    ours = backbone()
    talk = conversation(ours, 0, 9, [(128, 96)])
    assert talk.grids is not None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run_backbone(ours, [talk])
    linear = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op) and "bmm" not in str(op))
    assert linear == ours.cost().token * len(talk.ids) + ours.cost().patch * int(talk.grids.prod())


def test_the_visual_head_is_872_megaflop_a_token_in_the_2b_model() -> None:
    vit = SimpleNamespace(
        num_hidden_layers=0, hidden_size=1152, hidden_stride=2, intermediate_size=4304, num_channels=3,
        temporal_patch_size=1, patch_size=16,
    )  # fmt: skip
    llm = SimpleNamespace(
        num_attention_heads=16, num_hidden_layers=28, hidden_size=2048, head_dim=128, num_key_value_heads=8,
        intermediate_size=6144,
    )  # fmt: skip
    cost = cost_of(SimpleNamespace(llm_config=llm, vit_config=vit, visual_vocab_size=65536))
    assert 4 * (cost.patch - 2 * 768 * 1152) == pytest.approx(872e6, rel=1e-3)


# ---------------------------------------------------------------- published folders


def published(folder: Path, **vit: Any) -> Path:
    """A folder as the authors write them: no ids in config.json, but names of code; SigLIP's preprocessor file."""
    model = build_tiny(tiny_config(model={"family": FAMILY})).backbone
    model.save(folder)
    tiny_tokenizer(FAMILY).save_pretrained(folder)
    file = folder / "config.json"
    values = json.loads(file.read_text())
    for name in ("image_token_id", "vision_start_token_id", "vision_end_token_id", "initializer_range"):
        del values[name]
    values["auto_map"] = {"AutoConfig": "configuration_ovis2_5.Ovis2_5_Config"}
    values["conversation_formatter_class"] = "Qwen3ConversationFormatter"
    values["llm_config"]["_attn_implementation_autoset"] = True
    values["vit_config"] |= vit
    file.write_text(json.dumps(values))
    siglip = {
        "image_processor_type": "SiglipImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2,
        "rescale_factor": 1 / 255, "size": {"height": 512, "width": 512}, "do_resize": True,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(siglip))
    return folder


def test_a_published_folder_is_loaded_with_the_tokenizers_ids_and_without_its_code(tmp_path: Path) -> None:
    folder = published(tmp_path / "there")
    loaded, known = Ovis25.from_pretrained(str(folder), torch.float32), tiny_tokenizer(FAMILY).get_vocab()
    assert loaded.image_token_id == known["<|image_pad|>"]
    assert loaded.vlm.config.vision_start_token_id == known["<|vision_start|>"]
    loaded.save(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "auto_map" not in written and written["vision_end_token_id"] == known["<|vision_end|>"]
    assert written["conversation_formatter_class"] == "Qwen3ConversationFormatter"
    with torch.device("meta"):
        empty = Ovis25.empty(str(folder))
    assert {name: p.shape for name, p in empty.vlm.named_parameters()} == {
        name: p.shape for name, p in loaded.vlm.named_parameters()
    }


def test_patches_do_not_follow_the_tile_sizes_of_siglips_preprocessor(tmp_path: Path) -> None:
    spec = tiny_spec(FAMILY)
    plan, own = Ovis25.photo_plan(str(published(tmp_path)), spec), Ovis25.photo_plan("", spec)
    assert plan.facts() == own.facts() and (plan.patch_size, plan.patch_width, plan.token_size) == (16, 768, 32)
    image = noise_photo(3, 150, 90).image
    (first, grid), (second, _) = (each.patchify([image], [each.plan(*image.size)]) for each in (plan, own))
    assert torch.equal(first, second) and tuple(first.shape) == (int(grid.prod()), 768)
    own.save(tmp_path)
    assert Ovis25.photo_plan(str(tmp_path), spec).facts() == own.facts()


def test_a_tower_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = published(tmp_path, fullatt_block_indexes="7|15|23|31")
    with pytest.raises(OSError, match="vit_config has windows"):
        Ovis25.from_pretrained(str(folder), torch.float32)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(OSError, match="says model_type llava, which is not ovis2_5's"):
        Ovis25.empty(str(folder))
