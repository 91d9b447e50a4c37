"""The demo model's tokenizer: one token a word, words parted by any white space.

`<pad>`, `<s>` and `</s>` are known to the tokenizer only as special tokens and not to its word
list, so text that is tokenised as plain text can never produce them; it gives `<unk>` instead.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

from delift_pipeline.demo import words as w

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_TOKENS = 512
"""The window of the demo model, in tokens."""

JUDGE_WORDS: tuple[str, ...] = tuple(
    "rate score quality good bad poor best worst better worse instruction input output response "
    "answer question helpful accurate correct wrong right true false yes no clear complete useful "
    "easy hard how well does from to of out number only reply following below and or as are you "
    "your assistant user . : ? , -".split()
)
"""What prompts that ask a model to rate a record need, beside the digits."""

PAD, START, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
TASK_MARK, ANSWER_MARK = "Task:", "Answer:"


def _template_words() -> Iterable[str]:
    for wordings in w.TEMPLATES.values():
        for wording in wordings:
            yield from (word for word in wording.split() if word != "{mode}")


def plain_words() -> list[str]:
    """All words of the vocabulary but `<pad> <s> </s> <unk>`, each once, in a fixed order."""
    phrases = [word for phrase in (*w.GREETINGS, *w.ADDRESSES) for word in phrase.split()]
    groups: tuple[Iterable[str], ...] = (
        (TASK_MARK, ANSWER_MARK),
        w.CONCEPTS,
        w.SYNONYMS.values(),
        w.NAMES,
        w.NUMBERS,
        w.CODES,
        w.MODES,
        w.OPENERS,
        w.SEPARATORS,
        w.CLOSERS,
        w.ANSWER_WORDS,
        _template_words(),
        phrases,
        JUDGE_WORDS,
    )
    return list(dict.fromkeys(word for group in groups for word in group))


def vocabulary() -> list[str]:
    """Every token in the order of the token ids: `<unk>`, the words, `<pad> <s> </s>`."""
    return [UNKNOWN, *plain_words(), PAD, START, END]


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

    listed = [UNKNOWN, *plain_words()]
    model = models.WordLevel({word: index for index, word in enumerate(listed)}, UNKNOWN)
    core = Tokenizer(model)
    specials = (PAD, START, END)
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in specials])
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single=f"{START} $A", special_tokens=[(START, cast(int, core.token_to_id(START)))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=MAX_TOKENS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
