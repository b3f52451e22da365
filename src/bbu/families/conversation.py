"""Chat format of a model family: its template, and the tokens that mark turns and photos. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conversation:
    """Chat format of a family.

    Args:
        template: Jinja source of the chat template.
        image_text: text that the template writes for a photo; contains ``image_token`` once.
        image_token: repeated for every image token of the photo.
        turn_start: first token of every turn.
        answer_header: beginning of an assistant turn; supervision starts after it.
        end: end token of an answer, supervised with it.
        pad: padding token.
        special_tokens: of a tokenizer trained from scratch, in the order of their ids; no answer may contain one.
        word_pattern: regular expression by which such a tokenizer splits text before BPE.
        box_convention: how boxes are written as text: "model_pixels" (integer pixels after the resize) or "norm1000"
            (0 to 1000 across the photo).
        system_in_first_turn: whether the system prompt opens the first user turn instead of having its own turn.
    """

    template: str
    image_text: str
    image_token: str
    turn_start: str
    answer_header: str
    end: str
    pad: str
    special_tokens: tuple[str, ...]
    word_pattern: str
    box_convention: str
    system_in_first_turn: bool = False

    @property
    def needed_tokens(self) -> tuple[str, ...]:
        """Special tokens that a tokenizer must have to write this conversation."""
        written = (self.template, self.image_text, self.answer_header, self.end, self.pad)
        return tuple(token for token in self.special_tokens if any(token in text for text in written))

    @property
    def before_image(self) -> str:
        """The text of ``image_text`` before the image token."""
        return self.image_text.partition(self.image_token)[0]
