"""The model in the layout of its published folders; transformers has the parts, but not this model.

    llm.*                                    Qwen3ForCausalLM
    visual_tokenizer.vit.vision_model.*      SigLIP 2's tower for photos of any size (NaViT)
    visual_tokenizer.head.{0,1}.*            projection to the visual words, and its LayerNorm
    vte.weight                               visual embedding table: words, then four indicators

Shapes: E width of an attention head, H attention heads, P patch rows, X numbers of a patch row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.models.video_llama_3.modeling_video_llama_3 import (
    VideoLlama3VisionAttention,
    VideoLlama3VisionEncoderLayer,
    VideoLlama3VisionMLP,
)

from bbu.families.ovis2_5.codec import INDICATORS
from bbu.families.ovis2_5.visual_head import Words
from bbu.layers.attention import varlen_attention
from bbu.layers.padded import missing_columns, narrowed, widened
from bbu.layers.rotary import rotate

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, (P, E) each


class TowerConfig(PreTrainedConfig):
    """Published ``vit_config``; the defaults are those of both sizes."""

    model_type = "siglip2_navit"
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_channels: int = 3
    num_patches: int = -1
    image_size: int = 512  # its side in patches is that of the table of learned positions
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    hidden_stride: int = 2  # rows and columns of states that are joined into a token
    window_size: int = 112
    fullatt_block_indexes: str | None = None  # null: no block has windows
    temporal_patch_size: int = 1
    preserve_original_pe: bool = True
    use_rope: bool = True


class OvisConfig(PreTrainedConfig):
    """Published ``config.json``, and the ids of the tokens that stand for a photo in the text."""

    model_type = "ovis2_5"
    sub_configs_defaults = {"llm_config": SubConfigSpec(Qwen3Config), "vit_config": SubConfigSpec(TowerConfig)}  # noqa: RUF012

    llm_config: Any = None
    vit_config: Any = None
    visual_vocab_size: int = 65536
    hidden_size: int = 0  # of the language model; trainers read it here
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False  # llm_config says whether the language model's are
    image_token_id: int | None = None  # published folders leave these to the tokenizer
    vision_start_token_id: int | None = None
    vision_end_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.hidden_size = self.llm_config.hidden_size


AutoConfig.register(OvisConfig.model_type, OvisConfig, exist_ok=True)  # else loading a tokenizer warns of the folder


class PackedAttention(VideoLlama3VisionAttention):
    """The library's attention through our backends, which keep photos apart."""

    attention_backend = "sdpa"

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: Rotation | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """(P, D) → (P, D), attending within the segments of ``cu_seqlens``; without rotary positions if None."""
        query, key, value = (
            project(hidden_states).unflatten(-1, (self.num_heads, -1))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if position_embeddings is not None:
            cos, sin = (table[:, None] for table in position_embeddings)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        assert max_seqlen is not None
        attended_PHE = varlen_attention(
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
        return self.out_proj(attended_PHE.flatten(1)), None


class PaddedMLP(VideoLlama3VisionMLP):
    """The library's MLP, whose width of 4,304 GPUs take as 4,352 (bbu.layers.padded); its tanh-GELU keeps 0."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        more = missing_columns(hidden_states, self.fc1, self.fc2)
        return narrowed(self.fc2, self.activation_fn(widened(self.fc1, hidden_states, more)), more)


class TowerLayer(VideoLlama3VisionEncoderLayer):
    """The library's block around this attention and MLP."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.self_attn, self.mlp = PackedAttention(config), PaddedMLP(config)


class PatchProjection(nn.Conv2d):
    """A convolution whose kernel covers exactly one patch, as a matrix product of patch rows."""

    def forward(self, rows_PX: torch.Tensor) -> torch.Tensor:
        return F.linear(rows_PX, self.weight.flatten(1), self.bias)


class UnusedNorm(nn.Module):
    """Weights that published folders have and the model does not use: no parameters, or steps would wait for them."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))


class Tower(nn.Module):
    """The tower's weights; ``post_layernorm`` comes after the states that the head reads (``hidden_states[-1]`` of
    AIDC-AI/Ovis@8c13866)."""

    embeddings: Any
    encoder: Any

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.embeddings = nn.Module()
        self.embeddings.patch_embedding = PatchProjection(
            config.num_channels * config.temporal_patch_size, width, kernel_size=patch, stride=patch
        )
        self.embeddings.position_embedding = nn.Embedding((config.image_size // patch) ** 2, width)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(TowerLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = UnusedNorm(width)


class VisualTokenizer(nn.Module):
    """Tower and visual head."""

    vit: Any
    head: Any

    def __init__(self, config: OvisConfig) -> None:
        super().__init__()
        vit: Any = config.vit_config
        words = config.visual_vocab_size - INDICATORS
        self.vit = nn.Module()
        self.vit.vision_model = Tower(vit)
        self.head = nn.Sequential(
            nn.Linear(vit.hidden_size * vit.hidden_stride**2, words, bias=False), nn.LayerNorm(words)
        )

    @property
    def words(self) -> Words:
        project, norm = self.head
        return Words(project.weight, norm.weight, norm.bias, norm.eps)


class OvisModel(PreTrainedModel):
    """The weights under their published names; bbu.families.ovis2_5.backbone runs them."""

    config_class = OvisConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ["TowerLayer", "Qwen3DecoderLayer"]  # noqa: RUF012

    def __init__(self, config: OvisConfig) -> None:
        super().__init__(config)
        self.llm = Qwen3ForCausalLM(config.llm_config)
        self.visual_tokenizer = VisualTokenizer(config)
        self.vte = nn.Embedding(config.visual_vocab_size, config.hidden_size)
        self.post_init()

    @property
    def base_model(self) -> nn.Module:
        """The language model without its head, whose norms and MLPs fused kernels replace."""
        return self.llm.model  # type: ignore[no-any-return]

    @property
    def vision_model(self) -> Tower:
        return self.visual_tokenizer.vit.vision_model  # type: ignore[no-any-return]

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()  # type: ignore[no-any-return]

    def _init_weights(self, module: nn.Module) -> None:
        """Words are drawn with deviation 1 (as the authors do): a soft token is a mean of many, which is smaller."""
        super()._init_weights(module)
        if module is getattr(self, "vte", None) and not getattr(module.weight, "_is_hf_initialized", False):
            init.normal_(module.weight[:-INDICATORS], mean=0.0, std=1.0)
