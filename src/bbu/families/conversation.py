"""How a model family writes a conversation: its template and the tokens that mark turns and photos. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conversation:
    """The text side of a family.

    Args:
        template: Jinja source of the chat template.
        image_text: what the template writes for a photo; holds ``image_token`` once.
        image_token: repeated for every image token of the photo.
        turn_start: first token of every turn.
        answer_header: what an assistant's turn begins with; supervision starts after it.
        end: ends an answer, and is supervised with it.
        pad: fills padded batches.
        special_tokens: of a tokenizer trained from scratch, in the order of their ids; no answer may contain one.
        word_pattern: regular expression that such a tokenizer splits text with before it learns its merges.
        box_convention: how boxes are written as text: "model_pixels" (whole pixels of the resized photo) or "norm1000"
            (0 to 1000 across what the model sees).
        system_in_first_turn: whether the system words open the first user turn instead of having a turn of their own.
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
        """Special tokens without which a tokenizer cannot write this conversation."""
        written = (self.template, self.image_text, self.answer_header, self.end, self.pad)
        return tuple(token for token in self.special_tokens if any(token in text for text in written))

    @property
    def before_image(self) -> str:
        """What ``image_text`` writes before the image token."""
        return self.image_text.partition(self.image_token)[0]
