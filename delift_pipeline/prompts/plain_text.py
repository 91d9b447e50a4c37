"""Tokenise text as plain text, so that nothing in it is read as a special token.

A model's tokenizer turns "</s>" in a text into the end-of-text token, and many tokenizers add a
blank before every text. A copy of the tokenizer does neither: its special tokens have names that
occur in no text, so "</s>" becomes ordinary tokens, and a segment is tokenised exactly as it is
written. The token ids stay those of the model.
"""

import json
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from delift_pipeline.core.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

_SPECIAL_TOKEN = re.compile(r"^\s*[<\[].*[>\]]\s*$", re.DOTALL)


@dataclass(frozen=True)
class SpecialToken:
    """A special token that a template writes.

    Attributes:
        surface: Its text, such as `</s>`.
        strips_before: Whether the tokenizer drops white space before it.
        strips_after: Whether the tokenizer drops white space after it.
    """

    id: int
    surface: str
    strips_before: bool = False
    strips_after: bool = False


class PlainTextTokenizer:
    """Tokenises segments of text without special tokens.

    Attributes:
        special_ids: The ids of the special tokens, which no text of a record may produce.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Copy a tokenizer of transformers.

        Raises:
            InputError: The tokenizer has no fast backend (`tokenizers`).
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(
                f"The tokenizer {type(tokenizer).__name__} has no fast backend "
                "(tokenizer.json). Convert it first.",
                field="model",
            )
        self._state = backend.to_str()
        state = json.loads(self._state)
        # Ordinary text may give the token for unknown text. GPT-2 has one token for everything:
        # there it also begins or ends a text, and so counts as special.
        unknown = tokenizer.unk_token
        ordinary = None if unknown in (tokenizer.bos_token, tokenizer.eos_token) else unknown
        self._special_tokens = {
            t["content"]: SpecialToken(t["id"], t["content"], bool(t["lstrip"]), bool(t["rstrip"]))
            for t in state["added_tokens"]
            if (t["special"] or _SPECIAL_TOKEN.match(t["content"])) and t["content"] != ordinary
        }
        # Many models pad with the token for unknown text, which is not special.
        pad = tokenizer.pad_token_id
        ids = [token.id for token in self._special_tokens.values()]
        ids += [tokenizer.bos_token_id, tokenizer.eos_token_id]
        ids += [] if pad == tokenizer.unk_token_id else [pad]
        self.special_ids = frozenset(token for token in ids if isinstance(token, int))
        self._backend = _rebuild_tokenizer(state, self._special_tokens, only_first=False)

    def encode(self, texts: Sequence[str], after_special: bool = False) -> "list[Encoding]":
        """Tokenise texts, each on its own; an encoding has `ids` and `offsets` in characters.

        With `after_special` the blank that the tokenizer may add after a special token is kept.
        """
        backend = self._backend_after_special if after_special else self._backend
        return backend.encode_batch(list(texts), add_special_tokens=False)

    def split_special_tokens(self, text: str) -> "tuple[str | SpecialToken, ...]":
        """Split a template's own words at their special tokens, as the tokenizer would."""
        if not self._special_tokens:
            return (text,) if text else ()
        longest_first = sorted(self._special_tokens, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        tokens = [self._special_tokens[surface] for surface in pieces[1::2]]
        parts: list[str | SpecialToken | None] = []
        for words, before, after in zip(pieces[::2], [None, *tokens], [*tokens, None], strict=True):
            words = words.lstrip() if before and before.strips_after else words
            parts += [words.rstrip() if after and after.strips_before else words, after]
        return tuple(part for part in parts if part)

    @cached_property
    def _backend_after_special(self) -> "Tokenizer":
        return _rebuild_tokenizer(json.loads(self._state), self._special_tokens, only_first=True)

    def ids(self, text: str) -> np.ndarray:
        """Return the token ids of one text, int32 [tokens]."""
        return np.asarray(self.encode([text])[0].ids, dtype=np.int32)


def _rebuild_tokenizer(
    state: dict[str, Any], special: Iterable[str], only_first: bool
) -> "Tokenizer":
    """Build a tokenizer whose special tokens have secret names; see `_without_added_blanks`."""
    from tokenizers import Tokenizer

    # The names differ from run to run, so no data can hold them. Token ids do not depend on them.
    secret = uuid.uuid4().hex
    names = {content: f"\ue000{secret}{place}" for place, content in enumerate(sorted(special))}
    _rename_in_vocabulary(state["model"], names)
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    for stage in ("normalizer", "pre_tokenizer"):
        state[stage] = _without_added_blanks(state[stage], only_first)
    state["post_processor"] = state["truncation"] = state["padding"] = None
    return Tokenizer.from_str(json.dumps(state))


def _rename_in_vocabulary(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename tokens of the vocabulary, except those that the merge rules use."""
    merged: set[str] = set()
    for merge in model.get("merges") or []:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        merged |= {left, right, left + right}
    free = {old: new for old, new in names.items() if old not in merged}
    if model.get("unk_token") in free:
        model["unk_token"] = free[model["unk_token"]]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {free.get(token, token): place for token, place in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[free.get(token, token), score] for token, score in vocabulary]


def _without_added_blanks(part: dict[str, Any] | None, only_first: bool) -> dict[str, Any] | None:
    """Return a normalizer or pre-tokenizer that adds no blank to a text.

    With `only_first` only the blank before the first text of a sequence is removed, because the
    tokenizer does not add that one after a special token.
    """
    if part is None or (part["type"] == "Prepend" and not only_first):
        return None
    if part["type"] == "Sequence":
        members = "normalizers" if "normalizers" in part else "pretokenizers"
        changed = (_without_added_blanks(member, only_first) for member in part[members])
        return {**part, members: list(filter(None, changed))}
    if part.get("prepend_scheme") == "first" or (part["type"] == "Metaspace" and not only_first):
        part = {**part, "prepend_scheme": "never"}
    added = "add_prefix_space" in part and not only_first
    return {**part, "add_prefix_space": False} if added else part
