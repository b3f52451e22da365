"""Tokenizers: load one, or train a small byte-level BPE on the text of a data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bbu.errors import ConfigError
from bbu.families.conversation import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train_tokenizer(texts: Iterable[str], vocab_size: int, conversation: Conversation) -> PreTrainedTokenizerBase:
    """A byte-level BPE with the conversation's special tokens, at most ``vocab_size`` entries.

    It can encode any text, because its alphabet is the bytes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(conversation.word_pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(conversation.special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=conversation.end,
        pad_token=conversation.pad,
        additional_special_tokens=[
            t for t in conversation.special_tokens if t not in (conversation.end, conversation.pad)
        ],
        chat_template=conversation.template,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: str, conversation: Conversation, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer from a local folder or a hub name, with the conversation's template.

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
    missing = [token for token in conversation.needed_tokens if token not in known]
    if missing:
        raise ConfigError(f"tokenizer {path}: lacks {', '.join(missing)}; use one of the model's family")
    tokenizer.chat_template = conversation.template
    return tokenizer
