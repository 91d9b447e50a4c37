"""The demo model's tokenizer: one token a word, words parted by any white space.

`<pad>`, `<s>` and `</s>` are known to the tokenizer only as special tokens and not to its word
list, so text that is tokenised as plain text can never produce them; it gives `<unk>` instead.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from delift_pipeline.demo import words as w

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_TOKENS = 512
"""The window of the demo model, in tokens."""


def vocabulary() -> list[str]:
    """Every token in the order of the token ids: `<unk>`, the words, `<pad> <s> </s>`."""
    return [w.UNKNOWN, *w.plain_words(), w.PAD, w.START, w.END]


def token_ids() -> dict[str, int]:
    """Token -> id, the same ids as the tokenizer's; for code that needs no tokenizer."""
    return {token: index for index, token in enumerate(vocabulary())}


def encoder() -> Callable[[str], list[int]]:
    """A function from text of known words to token ids; KeyError for an unknown word."""
    ids = token_ids()
    return lambda text: [ids[word] for word in text.split()]


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Build the tokenizer from the word list; by itself it puts `<s>` before a text."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    listed = [w.UNKNOWN, *w.plain_words()]
    model = models.WordLevel({word: index for index, word in enumerate(listed)}, w.UNKNOWN)
    core = Tokenizer(model)
    specials = (w.PAD, w.START, w.END)
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in specials])
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single=f"{w.START} $A", special_tokens=[(w.START, cast(int, core.token_to_id(w.START)))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=w.PAD,
        bos_token=w.START,
        eos_token=w.END,
        unk_token=w.UNKNOWN,
        model_max_length=MAX_TOKENS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
