"""Tokenise text as plain text: nothing in it is read as a special token.

A model's tokenizer turns "</s>" in a text into the end-of-text token, and many put a blank before
every text. Both are switched off in a copy: tokens that mark structure get names that no text
holds, so that their surface falls apart into ordinary tokens, and a segment is tokenised exactly as
it is written. Ids stay those of the model.
"""

import json
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from delift_pipeline.core.errors import Refused

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

_MARKER = re.compile(r"^\s*[<\[].*[>\]]\s*$", re.DOTALL)


@dataclass(frozen=True)
class Marker:
    """A special token where a template wants it.

    Attributes:
        takes_before: Whether it swallows white space before it.
        takes_after: Whether it swallows white space after it.
    """

    id: int
    surface: str
    takes_before: bool = False
    takes_after: bool = False


class PlainText:
    """Tokenises segments of text without special tokens.

    Attributes:
        markers: Ids of the tokens that mark structure and that no text may produce.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Copy a tokenizer of transformers.

        Raises:
            Refused: it has no `tokenizers` backend.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise Refused(
                f"the tokenizer {type(tokenizer).__name__} has no fast backend "
                "(tokenizer.json); convert it first",
                field="model",
            )
        self._state = backend.to_str()
        state = json.loads(self._state)
        # The token for unknown text, unless it marks structure as well (GPT-2 has one for all).
        unknown = tokenizer.unk_token
        plain = None if unknown in (tokenizer.bos_token, tokenizer.eos_token) else unknown
        self._surfaces = {
            t["content"]: Marker(t["id"], t["content"], bool(t["lstrip"]), bool(t["rstrip"]))
            for t in state["added_tokens"]
            if (t["special"] or _MARKER.match(t["content"])) and t["content"] != plain
        }
        # Many models pad with the token for unknown text, which ordinary text may give.
        pad = tokenizer.pad_token_id
        named = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        named += [] if pad == tokenizer.unk_token_id else [pad]
        ids = [*(marker.id for marker in self._surfaces.values()), *named]
        self.markers = frozenset(token for token in ids if isinstance(token, int))
        self._backend = _rebuilt(state, self._surfaces, only_first=False)

    def encode(self, texts: Sequence[str], after_marker: bool = False) -> "list[Encoding]":
        """Tokenise texts, each on its own; encodings hold `ids` and `offsets` in characters.

        After a special token (`after_marker`) the blank that a tokenizer may put there is kept.
        """
        backend = self._after_marker if after_marker else self._backend
        return backend.encode_batch(list(texts), add_special_tokens=False)

    def marked(self, text: str) -> "tuple[str | Marker, ...]":
        """A template's own words with the special tokens in them found, as the tokenizer would."""
        if not self._surfaces:
            return (text,) if text else ()
        longest = sorted(self._surfaces, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, longest))})", text)
        markers = [self._surfaces[surface] for surface in pieces[1::2]]
        parts: list[str | Marker | None] = []
        for own, before, after in zip(pieces[::2], [None, *markers], [*markers, None], strict=True):
            own = own.lstrip() if before and before.takes_after else own
            parts += [own.rstrip() if after and after.takes_before else own, after]
        return tuple(part for part in parts if part)

    @cached_property
    def _after_marker(self) -> "Tokenizer":
        return _rebuilt(json.loads(self._state), self._surfaces, only_first=True)

    def ids(self, text: str) -> np.ndarray:
        """Token ids of one text, int32 [tokens]."""
        return np.asarray(self.encode([text])[0].ids, dtype=np.int32)


def _rebuilt(state: dict[str, Any], renamed: Iterable[str], only_first: bool) -> "Tokenizer":
    from tokenizers import Tokenizer

    # The names change from run to run so that no data can hold them; ids do not depend on them.
    secret = uuid.uuid4().hex
    names = {content: f"\ue000{secret}{place}" for place, content in enumerate(sorted(renamed))}
    _rename_in_vocabulary(state["model"], names)
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    for stage in ("normalizer", "pre_tokenizer"):
        state[stage] = _with_blanks(state[stage], only_first)
    state["post_processor"] = state["truncation"] = state["padding"] = None
    return Tokenizer.from_str(json.dumps(state))


def _rename_in_vocabulary(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename tokens of the vocabulary, except those that merges name."""
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


def _with_blanks(part: dict[str, Any] | None, only_first: bool) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer that adds no blank to a text.

    With `only_first` every blank stays but one that is added to the first text of a sequence only,
    for it is none after a special token.
    """
    if part is None or (part["type"] == "Prepend" and not only_first):
        return None
    if part["type"] == "Sequence":
        members = "normalizers" if "normalizers" in part else "pretokenizers"
        changed = (_with_blanks(member, only_first) for member in part[members])
        return {**part, members: list(filter(None, changed))}
    if part.get("prepend_scheme") == "first" or (part["type"] == "Metaspace" and not only_first):
        part = {**part, "prepend_scheme": "never"}
    added = "add_prefix_space" in part and not only_first
    return {**part, "add_prefix_space": False} if added else part
