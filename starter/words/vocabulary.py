"""A vocabulary of one's own: each word, or each character, of an input is one token.

Numbers, pixels and items reach the served model as tokens: `{"text": "12 7 0"}` or `{"tokens": [12, 7, 0]}`.
"""

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

UNKNOWN = "?"


def of_words(words: list[str]) -> Tokenizer:
    """Token ``i`` is ``words[i]``; words are separated by spaces. An unknown word is token ``len(words)``."""
    return _tokenizer(words, pre_tokenizers.WhitespaceSplit())


def of_characters(characters: list[str]) -> Tokenizer:
    """Token ``i`` is ``characters[i]``. An unknown character is token ``len(characters)``."""
    return _tokenizer(characters, pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"))


def _tokenizer(words: list[str], split: pre_tokenizers.PreTokenizer) -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate([*words, UNKNOWN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    return tokenizer
