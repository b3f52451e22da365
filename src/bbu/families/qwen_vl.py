"""What Qwen2.5-VL and Qwen3-VL share: photos as patch rows in merge units, M-RoPE, text layers that take boundaries.

Shapes: T packed tokens, D feature width, P patch rows, S image tokens, X numbers of a patch row.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, Qwen2VLImageProcessor

from bbu.families.base import Backbone, Grid, PositionFunction, VisionLevel
from bbu.families.generation import Prompt, pad_left, until_end
from bbu.families.patches import units_to_picture
from bbu.families.photo_plan import MergedPlan
from bbu.families.prompts import PromptSpec
from bbu.layers.attention import TEXT_BOUNDARIES, implementation_name, varlen_attention
from bbu.layers.lean_layers import before
from bbu.layers.placing import place
from bbu.layers.rotary import rotate

# Standard deviation of random weights. The published 0.02 suits widths of thousands; at a few hundred, activations
# nearly vanish. 0.06 is about 1 / sqrt(width), which keeps a layer's output as large as its input.
SCRATCH_INIT = 0.06


def scratch_text(sizes: Any, vocab_size: int, token_ids: Mapping[str, int], **rope: Any) -> dict[str, Any]:
    """``text_config`` of a randomly initialised model; ``rope`` are further rotary parameters."""
    head_width = sizes.text_width // sizes.text_heads
    third = head_width // 2 // 3
    return {
        "initializer_range": SCRATCH_INIT,
        "vocab_size": vocab_size,
        "hidden_size": sizes.text_width,
        "intermediate_size": sizes.text_width * 3,
        "num_hidden_layers": sizes.text_depth,
        "num_attention_heads": sizes.text_heads,
        "num_key_value_heads": sizes.text_kv_heads,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            # the three sections add up to half of the head width, like the published [16, 24, 24]
            "mrope_section": [head_width // 2 - 2 * third, third, third],
            **rope,
        },
        "bos_token_id": token_ids["<|endoftext|>"],
        "eos_token_id": token_ids["<|im_end|>"],
        "pad_token_id": token_ids["<|endoftext|>"],
    }


def scratch_ids(token_ids: Mapping[str, int]) -> dict[str, Any]:
    """What both families' configs say of the tokens of photos."""
    return {
        "image_token_id": token_ids["<|image_pad|>"],
        "video_token_id": token_ids["<|video_pad|>"],
        "vision_start_token_id": token_ids["<|vision_start|>"],
        "vision_end_token_id": token_ids["<|vision_end|>"],
        "tie_word_embeddings": True,
    }


class PackedVisionAttention(nn.Module):
    """The tower's attention through our attention backends: the forward of an attention that the library has built.

    The stock layer loops over its segments in Python unless the implementation's name contains "flash", and
    transformers refuses custom names with "flash"; hence the swap.
    """

    attention_backend = "sdpa"
    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    scaling: float

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(P, D) → (P, D), attending within the segments of ``cu_seqlens``."""
        rows = hidden_states.shape[0]
        assert position_embeddings is not None
        cos, sin = (table[:, None, None] for table in position_embeddings)
        turned, still = self.qkv(hidden_states).reshape(rows, 3, self.num_heads, -1).split((2, 1), 1)
        (query, key), value = rotate(turned, cos, sin).unbind(1), still.squeeze(1)
        if max_seqlen is None:
            max_seqlen = int((cu_seqlens[1:] - cu_seqlens[:-1]).max())
        attended = varlen_attention(
            query,
            key,
            value,
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_k=cu_seqlens,
            max_seqlen_q=max_seqlen,
            max_seqlen_k=max_seqlen,
            causal=False,
            backend=self.attention_backend,
            scale=self.scaling,
        )
        return self.proj(attended.reshape(rows, -1))  # type: ignore[no-any-return]


class PackedTextAttention(nn.Module):
    """The language model's attention on a pack, in the layout of our backends; without boundaries, the library's own.

    The forward of an attention that the library has built: parameters keep their names, generation its cache.
    """

    attention_backend = "sdpa"
    o_proj: nn.Linear
    head_dim: int
    scaling: float

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """(1, T, D) → (1, T, D), causal within the boundaries."""
        if kwargs.get(TEXT_BOUNDARIES[0]) is None or kwargs.get("past_key_values") is not None:
            kwargs |= {"position_embeddings": position_embeddings, "attention_mask": attention_mask}
            return super().forward(hidden_states=hidden_states, **kwargs)  # type: ignore[misc,no-any-return]
        cos, sin = (table[0][:, None] for table in position_embeddings)
        query, key, value = (self._heads(name, hidden_states) for name in "qkv")
        cu_q, cu_k, max_q, max_k = (kwargs[name] for name in TEXT_BOUNDARIES)
        attended = varlen_attention(
            rotate(query, cos, sin), rotate(key, cos, sin), value,
            cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=max_q, max_seqlen_k=max_k,
            causal=True, backend=self.attention_backend, scale=self.scaling,
        )  # fmt: skip
        return self.o_proj(attended.flatten(1)[None]), None

    def _heads(self, name: str, hidden_states: torch.Tensor) -> torch.Tensor:
        """(1, T, D) → (T, heads, E): the projection of queries, keys or values, normed where the library norms it."""
        heads = getattr(self, f"{name}_proj")(hidden_states).squeeze(0).unflatten(-1, (-1, self.head_dim))
        norm = getattr(self, f"{name}_norm", None)
        return heads if norm is None else norm(heads)  # type: ignore[no-any-return]


class PatchProjection(nn.Conv3d):
    """The tower's first layer as a matrix product, because its kernel covers exactly one patch.

    On a CPU it takes a sixth of the convolution's time.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


class QwenVL(Backbone):
    """Base class of the two families.

    Subclasses set ``library``, the class of transformers, and ``model_type`` of its config.
    """

    library: ClassVar[Any]
    model_type: ClassVar[str]

    def __init__(self, vlm: Any, backend: str = "sdpa") -> None:
        super().__init__()
        self.vlm = vlm
        for block in vlm.model.visual.blocks:
            block.attn.__class__ = PackedVisionAttention  # same parameters and names, another forward
        for layer in vlm.model.language_model.layers:
            layer.self_attn.__class__ = before(PackedTextAttention, type(layer.self_attn))  # type: ignore[arg-type]
        vlm.model.visual.patch_embed.proj.__class__ = PatchProjection  # the same parameter and name
        self.use_attention_backend(backend)

    # ------------------------------------------------------------ construction

    @classmethod
    def from_pretrained(cls, path: str, dtype: torch.dtype, trust_remote_code: bool = False) -> QwenVL:
        cls._config_of(path, trust_remote_code)
        loaded: Any = cls.library.from_pretrained(
            path, dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True, output_loading_info=True
        )
        vlm, report = loaded
        if report["missing_keys"]:  # transformers makes up random ones
            raise OSError(f"its weights lack {len(report['missing_keys'])} tensors, e.g. {min(report['missing_keys'])}")
        return cls(vlm)

    @classmethod
    def empty(cls, path: str, trust_remote_code: bool = False) -> QwenVL:
        return cls(cls.library(cls._config_of(path, trust_remote_code)))

    @classmethod
    def _config_of(cls, path: str, trust_remote_code: bool) -> Any:
        """The config of a model folder.

        Raises:
            OSError: there is none, or it is another family's.
        """
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        if config.model_type != cls.model_type:
            raise OSError(f"its config.json says model_type {config.model_type}, which is not {cls.family}'s")
        return config

    @classmethod
    def photo_plan(cls, path: str, spec: PromptSpec) -> MergedPlan:
        processor = Qwen2VLImageProcessor.from_pretrained(path) if path else cls._image_processor()
        return MergedPlan(processor, spec.min_pixels, spec.max_pixels)

    @classmethod
    @abstractmethod
    def _image_processor(cls) -> Qwen2VLImageProcessor:
        """The image processor that the family's published models have."""

    # ------------------------------------------------------------ facts

    @property
    def _vision(self) -> Any:
        return self.vlm.config.vision_config

    @property
    def _text(self) -> Any:
        return self.vlm.config.text_config

    @property
    def hidden_size(self) -> int:
        return int(self._text.hidden_size)

    @property
    def level_sides(self) -> list[int]:
        patch = int(self._vision.patch_size)
        return [patch, patch * int(self._vision.spatial_merge_size)]

    def picture(self, rows_PX: torch.Tensor, grid: Grid) -> torch.Tensor:
        return units_to_picture(rows_PX, grid, int(self._vision.patch_size), int(self._vision.spatial_merge_size))

    @property
    def image_token_id(self) -> int:
        return int(self.vlm.config.image_token_id)

    @property
    def vision_depth_width(self) -> tuple[int, int]:
        return int(self._vision.depth), int(self._vision.hidden_size)

    @property
    def text_depth_width(self) -> tuple[int, int]:
        return int(self._text.num_hidden_layers), int(self._text.hidden_size)

    def position_function(self) -> PositionFunction:
        merge = int(self._vision.spatial_merge_size)
        return partial(mrope_positions, image_token_id=self.image_token_id, merge=merge)

    def blocks(self, part: str) -> Sequence[nn.Module]:
        model = self.vlm.model
        return list({"llm": model.language_model.layers, "vision": model.visual.blocks}[part])

    def use_attention_backend(self, backend: str) -> None:
        self.attention_backend = backend
        self.vlm.set_attn_implementation({"": "sdpa", "text_config": implementation_name(backend)})
        for block in self.vlm.model.visual.blocks:
            block.attn.attention_backend = backend
        for layer in self.vlm.model.language_model.layers:
            layer.self_attn.attention_backend = backend

    # ------------------------------------------------------------ work

    def read(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        levels: Sequence[VisionLevel],
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
    ) -> torch.Tensor:
        embeds_1TD = self.token_embedding(input_ids)
        more: dict[str, Any] = {}
        if levels:
            is_image_1T = input_ids == self.image_token_id
            tokens_SD, more = self._shown(levels[-1].tokens_SD, is_image_1T)
            embeds_1TD = place(embeds_1TD, is_image_1T, tokens_SD.to(embeds_1TD.dtype))
        hidden_1TD = self.vlm.model.language_model(
            inputs_embeds=embeds_1TD,
            position_ids=position_ids,
            attention_mask=self._no_mask,  # cu_seqlens is the mask
            use_cache=False,
            cu_seq_lens_q=cu_seqlens,
            cu_seq_lens_k=cu_seqlens,
            max_length_q=max_seqlen,
            max_length_k=max_seqlen,
            **more,
        ).last_hidden_state
        return hidden_1TD[0]  # type: ignore[no-any-return]

    _no_mask: ClassVar[Mapping[str, None] | None] = None

    def _shown(self, tokens_SD: torch.Tensor, is_image_1T: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        """The coarse level → what stands at the image tokens, and further arguments of the language model."""
        return tokens_SD, {}

    def generate(
        self, prompts: Sequence[Prompt], *, end_token_id: int, max_new_tokens: int, min_new_tokens: int = 0
    ) -> list[list[int]]:
        device = self.vlm.device
        ids, known = pad_left([prompt.input_ids.to(device) for prompt in prompts])
        written = self.vlm.generate(
            input_ids=ids,
            attention_mask=known,
            mm_token_type_ids=(ids == self.image_token_id).int(),
            pixel_values=torch.cat([prompt.pixel_values for prompt in prompts]).to(device),
            image_grid_thw=torch.cat([prompt.image_grid_thw for prompt in prompts]).to(device),
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=end_token_id,
            pad_token_id=end_token_id,
        )[:, ids.shape[1] :].tolist()
        return [until_end(row, end_token_id) for row in written]


def mrope_positions(token_ids: Sequence[int], grids: Sequence[Grid], image_token_id: int, merge: int) -> torch.Tensor:
    """(3, L) multimodal rotary positions of one sample (Qwen2-VL, Wang et al. 2024, arXiv:2409.12191).

    Text counts up on all three axes (frame, row, column). Image tokens count frames, rows and columns from the end of
    the preceding text. The next text starts after the longest side of the image.

    Raises:
        ValueError: image tokens and grids do not match.
    """
    ids = torch.as_tensor(token_ids)
    positions = torch.zeros(3, len(ids), dtype=torch.long)
    is_image = (ids == image_token_id).tolist()
    remaining = list(grids)
    index, position = 0, 0
    while index < len(is_image):
        if not is_image[index]:
            stop = next((i for i in range(index, len(is_image)) if is_image[i]), len(is_image))
            positions[:, index:stop] = torch.arange(stop - index) + position
            position += stop - index
            index = stop
            continue
        if not remaining:
            raise ValueError("there are more image tokens than the image grids account for")
        frames, rows, columns = remaining.pop(0)
        rows, columns = rows // merge, columns // merge
        stop = index + frames * rows * columns
        if stop > len(is_image) or not all(is_image[index:stop]):
            raise ValueError(f"an image of {frames}x{rows}x{columns} merged tokens does not fit its image tokens")
        axes = torch.meshgrid(torch.arange(frames), torch.arange(rows), torch.arange(columns), indexing="ij")
        positions[:, index:stop] = torch.stack([axis.reshape(-1) for axis in axes]) + position
        position += max(rows, columns)
        index = stop
    if remaining:
        raise ValueError(f"{len(remaining)} images have no image tokens")
    return positions
