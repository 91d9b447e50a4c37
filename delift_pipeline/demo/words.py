"""The words of the demo world, the only ones in its records and prompts.

The world is synthetic. A word is one token, so a word must not contain a blank.
"""

_PLAIN = {
    "animal": "cat dog horse cow sheep mouse bird fish wolf bear",
    "food": "bread cheese apple rice soup cake egg honey salt bean",
    "tool": "hammer saw nail rope knife spade drill brush wrench needle",
    "cloth": "hat coat shirt sock shoe glove scarf belt dress boot",
    "place": "river hill town forest beach road bridge farm cave island",
    "colour": "red blue green black white brown pink gray gold purple",
}
_SECOND = (
    "kitty hound steed cattle ewe rodent fowl trout lupine grizzly "
    "loaf cheddar pippin grain broth gateau ovum nectar brine pulse "
    "mallet cutter tack cord blade shovel borer broom spanner stitcher "
    "cap jacket blouse stocking sneaker mitten shawl strap gown wader "
    "stream mound city woods shore street viaduct ranch grotto isle "
    "crimson azure emerald ebony ivory bronze blush ash golden violet"
)
CATEGORIES = {name: tuple(words.split()) for name, words in _PLAIN.items()}
"""Concepts by category. A concept is named by its plain word."""
CONCEPTS: tuple[str, ...] = tuple(word for words in CATEGORIES.values() for word in words)
SYNONYMS: dict[str, str] = dict(zip(CONCEPTS, _SECOND.split(), strict=True))
"""The second word of each concept."""
CATEGORY_OF: dict[str, str] = {word: name for name, words in CATEGORIES.items() for word in words}
NAMES: tuple[str, ...] = tuple("ann bob carl dina eve finn gus hana ivan jo".split())
NUMBERS: tuple[str, ...] = tuple(str(number) for number in range(20))
CODES: tuple[str, ...] = tuple(
    "bak bek biz boz dak dax dik diz doz dul fab fel fub gek giz goz gul jak jox juk "
    "kev kib kub laz lok meb mok muv nal nel pav pex riv rov ruk tev tuk tul vab vuz "
    "wak wiv wux zak zav zeb zel zil".split()
)
MODES: tuple[str, ...] = tuple(
    "baki bolu dagi degu dodu feko fugi gaki ganu gomu guli kalo keza labo medu muto "
    "navo nelu nivi nuza pubo ravo rika taku temu tizu velo vimu zegu zivu".split()
)
"""Invented names of rules: the only word of an instruction that says which rule is meant."""

OPENERS: tuple[str, ...] = ("[", "(", "{", "<<")
SEPARATORS: tuple[str, ...] = (",", ";", "|", "/")
CLOSERS: tuple[str, ...] = ("]", ")", "}", ">>")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "lookup": (
        "give the {mode} code for",
        "what is the {mode} code of",
        "tell me which {mode} code belongs to",
        "find the {mode} code :",
        "in {mode} please look up the code of",
    ),
    "translate": (
        "translate to {mode} :",
        "say this in {mode} :",
        "how do we write these words in {mode} :",
        "put into the language {mode} :",
        "write in {mode} what i say here :",
    ),
    "group": (
        "find the {mode} group of",
        "which {mode} group has the word",
        "name the group in {mode} for",
        "give a {mode} group to",
        "tell me the {mode} group that holds",
    ),
    "order": (
        "apply {mode} to these words :",
        "run the rule {mode} on",
        "use {mode} on this list :",
        "what does {mode} make of",
        "show what the {mode} rule does with",
    ),
    "format": (
        "write the {mode} form of",
        "format with {mode} :",
        "show this list in the style {mode} :",
        "make a {mode} record of",
        "please set in {mode} form :",
    ),
    "shift": (
        "count {mode} from",
        "what number does {mode} make of",
        "move by {mode} the number",
        "give what comes when {mode} is run on",
        "use {mode} to count on from",
    ),
    "who": (
        "read this and answer with {mode} :",
        "answer in {mode} :",
        "tell me in the style {mode} :",
        "use {mode} to answer this question :",
        "who is it ? say it with {mode} :",
    ),
}
"""Wordings of an instruction by family. The input follows the instruction."""

GREETINGS: tuple[str, ...] = ("", "ok", "hello", "so", "now", "well", "please")
ADDRESSES: tuple[str, ...] = ("", "friend ,", "dear friend ,", "everyone ,", "again ,")
ANSWER_WORDS: tuple[str, ...] = ("it", "is", "i", "say", "has", "the", "who", ".", "?")
