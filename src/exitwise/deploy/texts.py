"""Texts as inputs of a network, by the tokenizer in its bundle. Needs the tokenizers library, and no torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exitwise.catalogue.extras import needing_extras
from exitwise.deploy.manifest import TEXT_PARTS, Input
from exitwise.errors import DataError, UserError

_PADS = ("[PAD]", "<pad>", "<|endoftext|>")
_ENDLESS = 10**6
"""Tokens from which a tokenizer's own limit means that it has none."""


def _library() -> Any:
    with needing_extras("reading texts"):
        import tokenizers
    return tokenizers


class Texts:
    """The way of a text to the network: preprocessing of an export that takes texts.

    Args:
        tokenizer: one of transformers that has a ``backend_tokenizer``, one of the tokenizers library, or a path to a
            ``tokenizer.json``.
        max_tokens: longer texts are cut there; by default where the tokenizer says, or the network's positions end.

    Attributes:
        content: of ``tokenizer.json``, cutting and filling up included.
        asked: ``max_tokens`` as given.
        size: number of ids.

    Raises:
        UserError: if the library is missing, for another kind of tokenizer, or one without a token to fill up with.
    """

    def __init__(self, tokenizer: Any, max_tokens: int | None = None) -> None:
        library = _library()
        own = getattr(tokenizer, "backend_tokenizer", tokenizer)
        try:
            if isinstance(own, (str, Path)):
                own = library.Tokenizer.from_file(str(own))
            made = library.Tokenizer.from_str(own.to_str())
        except Exception as error:  # the library raises plain ones
            raise UserError(
                "expected a tokenizer of transformers or of the tokenizers library, or the path of a tokenizer.json; "
                f"got {tokenizer if isinstance(tokenizer, (str, Path)) else type(tokenizer).__name__} ({error})"
            ) from error
        self.asked = max_tokens
        if max_tokens is None:
            limit = getattr(tokenizer, "model_max_length", None) or _ENDLESS
            max_tokens = made.truncation["max_length"] if made.truncation else limit if limit < _ENDLESS else None
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"expected max_tokens of at least 1; got {max_tokens}")
        side = getattr(tokenizer, "truncation_side", "right")
        self._side: str = made.truncation["direction"] if made.truncation else side
        made.no_truncation()
        if max_tokens is not None:
            made.enable_truncation(max_tokens, direction=self._side)
        made.enable_padding(**_padding(tokenizer, made))
        self.content: bytes = made.to_str().encode()
        self.size: int = made.get_vocab_size()

    def within(self, positions: int) -> Texts:
        """Return texts that are cut after so many tokens, or before as they are now.

        Raises:
            UserError: if more were asked for.
        """
        tokenizer = _library().Tokenizer.from_str(self.content.decode())
        if self.asked is not None and self.asked > positions:
            raise UserError(
                f"expected max_tokens of at most {positions}, as many as the network has positions; got {self.asked}"
            )
        if tokenizer.truncation and tokenizer.truncation["max_length"] <= positions:
            return self
        tokenizer.enable_truncation(positions, direction=self._side)
        shorter = copy.copy(self)
        shorter.content = tokenizer.to_str().encode()
        return shorter


def _padding(tokenizer: Any, copy: Any) -> dict[str, Any]:
    """Return how a tokenizer fills up texts to the longest of a batch."""
    told = getattr(tokenizer, "pad_token", None)
    if isinstance(told, str):
        direction = getattr(tokenizer, "padding_side", "right")
        return {"pad_token": told, "pad_id": tokenizer.pad_token_id, "direction": direction}
    if copy.padding:
        return {key: copy.padding[key] for key in ("pad_token", "pad_id", "pad_type_id", "direction")}
    known = [token for token in _PADS if copy.token_to_id(token) is not None]
    if not known:
        raise UserError(f"expected a tokenizer with a token to fill up with, such as {_PADS[0]}; it has none")
    return {"pad_token": known[0], "pad_id": copy.token_to_id(known[0])}


class TextReader:
    """Texts as the arrays that a network takes.

    Args:
        content: of ``tokenizer.json``.
        inputs: of the network.
        where: the file, for errors.

    Raises:
        UserError: if the library is missing or cannot read it.
    """

    def __init__(self, content: bytes, inputs: Sequence[Input], where: Path) -> None:
        library = _library()
        try:
            self._tokenizer = library.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises plain ones
            raise UserError(f"expected a tokenizer at {where}; {error}") from error
        self._inputs = inputs

    def __call__(self, texts: Sequence[str], multiple: int = 1) -> dict[str, npt.NDArray[Any]]:
        """Return an array (B, tokens) for each input, filled up to the longest text, and on to a multiple of so many
        tokens where the network takes as many.

        Raises:
            DataError: for something other than texts.
        """
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise DataError(f"expected texts; got a {type(wrong).__name__} among them")
        empty = next((number for number, text in enumerate(texts, start=1) if not text.strip()), None)
        if empty is not None:
            raise DataError(f"expected texts; text {empty} of {len(texts)} is empty")
        read = self._tokenizer.encode_batch(list(texts))
        if not read or not read[0].ids:
            raise DataError("expected at least one text, of at least one token; got none")
        for number, text in enumerate(read, start=1):
            if not any(text.attention_mask):
                raise DataError(f"expected texts of at least one token; text {number} of {len(read)} has none")
        self._fill_up(read, multiple)
        return {
            each.name: np.array([getattr(text, TEXT_PARTS[each.name]) for text in read], each.type)
            for each in self._inputs
        }

    def _fill_up(self, read: Sequence[Any], multiple: int) -> None:
        wanted, cut = -(-len(read[0].ids) // multiple) * multiple, self._tokenizer.truncation
        if cut and wanted > cut["max_length"]:
            wanted = cut["max_length"]
        padding = self._tokenizer.padding
        if not padding or wanted <= len(read[0].ids):
            return
        for text in read:
            text.pad(wanted, **{key: padding[key] for key in ("direction", "pad_id", "pad_type_id", "pad_token")})


def are_texts(inputs: Any) -> bool:
    """Return whether a runner was given texts: a sequence that begins with one."""
    if isinstance(inputs, (Mapping, np.ndarray, str)) or not isinstance(inputs, Sequence):
        return False
    return bool(inputs) and isinstance(inputs[0], str)
