"""Tokenizers: read one from disk, or train a small byte-level BPE on a data set's own text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bbu.errors import ConfigError
from bbu.families.prompts import SPECIAL_TOKENS, TEMPLATE_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Splits text the way Qwen2's tokenizer does: words, single digits, punctuation, line ends.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NEEDED_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|endoftext|>")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE with Qwen's special tokens, at most ``vocab_size`` entries.

    Any text can be encoded, seen or not: bytes are the alphabet.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in ("<|im_end|>", "<|endoftext|>")],
        chat_template=TEMPLATE_FILE.read_text(encoding="utf-8"),
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer from a local folder or a hub name, with our chat template.

    Raises:
        ConfigError: it cannot be read, or lacks the tokens that mark turns and photos.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"tokenizer {path}: cannot be read: {first}") from None
    known = tokenizer.get_vocab()
    missing = [token for token in NEEDED_TOKENS if token not in known]
    if missing:
        raise ConfigError(f"tokenizer {path}: lacks {', '.join(missing)}; use a Qwen-VL tokenizer")
    tokenizer.chat_template = TEMPLATE_FILE.read_text(encoding="utf-8")
    return tokenizer
