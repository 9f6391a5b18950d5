"""Text to words and back, and which words may be replaced: English words, Chinese words or characters."""

import re
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from tinybert_dist.config import UserError

# Closed-class English words, and the pieces punctuation splitting leaves of contractions (don't -> don ' t).
# Negations stand here on purpose: replacing one turns the label. scikit-learn's list was not taken: it holds
# content words (serious, sincere, empty, thin, fire) that carry sentiment, and lacks the contraction pieces.
ENGLISH_STOP_WORDS = frozenset(
    """
    a an the this that these those such
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her
    hers herself it its itself they them their theirs themselves one who whom whose which what
    am is are was were be been being have has had having do does did doing done
    can could will would shall should may might must ought cannot
    no not nor none never neither either
    and or but if because as until while although though unless since whether than so then yet
    of at by for with without about against between among into onto through during before after above below to
    from up down in out on off over under upon within toward towards along across behind beyond per via
    again further once here there when where why how all any both each few more most much many other another
    some only own same too very just also even now
    s t d m ll re ve don isn aren wasn weren hasn haven hadn doesn didn won wouldn shan shouldn couldn mustn
    needn ain
    """.split()
)
# Chinese particles, pronouns, copulas, negations, conjunctions, prepositions: a sentence breaks without them
CHINESE_STOP_WORDS = frozenset(
    "\u7684 \u4e86 \u7740 \u8fc7 \u5730 \u5f97 \u4e4b \u6240 \u5417 \u5462 \u5427 \u554a \u5440 \u561b "
    "\u54e6 \u6211 \u4f60 \u60a8 \u4ed6 \u5979 \u5b83 \u6211\u4eec \u4f60\u4eec \u4ed6\u4eec \u5979\u4eec "
    "\u5b83\u4eec \u8fd9 \u90a3 \u8fd9\u4e2a \u90a3\u4e2a \u8fd9\u4e9b \u90a3\u4e9b \u4ec0\u4e48 "
    "\u8c01 \u54ea \u662f \u6709 \u5728 \u4e0d \u6ca1 \u6ca1\u6709 \u4e0d\u662f \u522b \u672a \u65e0 \u975e "
    "\u548c \u4e0e \u6216 \u800c \u53ca \u4f46 \u4f46\u662f \u5982\u679c \u56e0\u4e3a \u6240\u4ee5 "
    "\u867d\u7136 \u628a \u88ab \u5bf9 \u4ece \u5411 \u7ed9 \u8ddf \u6bd4 \u4e3a \u4ee5 \u4e8e \u7531 "
    "\u5c31 \u90fd \u4e5f \u8fd8 \u53c8 \u624d \u5f88 \u592a \u4e00 \u4e2a".split()
)
# the dictionary's rare tail is names and archaisms: candidates must be words people use
MIN_WORD_COUNT = 10
# words that begin so (not, not have) would turn the label of a sentence they are put into
NEGATIONS = ("\u4e0d", "\u6ca1")
CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
CJK_CHARACTER = re.compile(f"[{CJK}]")
ALL_CJK = re.compile(f"[{CJK}]+")
CHARACTERS_OR_RUNS = re.compile(rf"[{CJK}]|\s+|[^\W_{CJK}]+|[^\s]")


class Words(NamedTuple):
    """One text cut into words; `"".join` or `" ".join` by `separator` gives the (normalised) text again."""

    words: tuple[str, ...]
    eligible: tuple[int, ...]
    separator: str
    of_dictionary: bool = False
    """whether Chinese words in it are to be replaced by words of the segmenter's dictionary"""

    def join(self, replaced: Sequence[str] | None = None) -> str:
        """The text with `replaced` (same length) in place of the words."""
        return self.separator.join(self.words if replaced is None else replaced)


def is_eligible(word: str) -> bool:
    """Letters only and not a stop word."""
    return word.isalpha() and word.lower() not in ENGLISH_STOP_WORDS and word not in CHINESE_STOP_WORDS


def cjk_share(text: str) -> float:
    """Share of Chinese characters among the letters of `text`."""
    letters = sum(map(str.isalpha, text))
    return len(CJK_CHARACTER.findall(text)) / letters if letters else 0.0


class EnglishWords:
    """BERT's basic tokenizer: cleaned, lower-cased, punctuation apart; words are joined by one space."""

    def __init__(self, lower_case: bool = True) -> None:
        self._normalizer = BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lower_case
        )
        self._splitter = BertPreTokenizer()
        self.dictionary: dict[int, list[str]] = {}

    def split(self, text: str) -> Words:
        """Words of `text`, punctuation included."""
        pieces = self._splitter.pre_tokenize_str(self._normalizer.normalize_str(text))
        return _words((piece for piece, _ in pieces), " ")


class ChineseCharacters:
    """Every Chinese character is a word of its own; Latin words, spaces and the rest stay as they are."""

    def __init__(self, lower_case: bool = True) -> None:
        self._lower_case = lower_case
        self.dictionary: dict[int, list[str]] = {}

    def split(self, text: str) -> Words:
        """Characters and Latin runs of `text`; joining them with nothing gives the text back."""
        return _words(CHARACTERS_OR_RUNS.findall(text.lower() if self._lower_case else text), "")


class ChineseWords:
    """Words of the jieba segmenter (an optional dependency), and its dictionary as the set of real words."""

    def __init__(self, lower_case: bool = True) -> None:
        self._lower_case = lower_case

    def split(self, text: str) -> Words:
        """Whole words of `text`; joining them gives the text back. Raises UserError without jieba."""
        return _words(self._jieba.cut(text.lower() if self._lower_case else text), "")._replace(
            of_dictionary=True
        )

    @cached_property
    def dictionary(self) -> dict[int, list[str]]:
        """Chinese words of the dictionary by their number of characters, sorted, without stop words and
        negations."""
        by_length: dict[int, list[str]] = {}
        for word, count in sorted(self._jieba.FREQ.items()):
            unwanted = word in CHINESE_STOP_WORDS or word.startswith(NEGATIONS)
            if count >= MIN_WORD_COUNT and ALL_CJK.fullmatch(word) and not unwanted:
                by_length.setdefault(len(word), []).append(word)
        return by_length

    @cached_property
    def _jieba(self):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes and pkg_resources inside jieba
                import jieba
        except ImportError as error:
            raise UserError(
                "Chinese words need the segmenter jieba, which is not installed. "
                "Install it (pip install jieba), or pass --segmenter characters."
            ) from error
        tokenizer = jieba.Tokenizer()
        # what initialize() does, without its marshal cache in the shared temporary folder and without its log
        tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
        tokenizer.initialized = True
        return tokenizer


class AutoSegmenter:
    """Chinese words for texts with at least a fifth of Chinese letters, English words for the others."""

    def __init__(self, lower_case: bool = True) -> None:
        self._english = EnglishWords(lower_case)
        self._chinese = ChineseWords(lower_case)

    def split(self, text: str) -> Words:
        """Words of `text` by the segmenter of its script; depends on this text alone."""
        return (self._chinese if cjk_share(text) >= 0.2 else self._english).split(text)

    @property
    def dictionary(self) -> dict[int, list[str]]:
        """The Chinese segmenter's dictionary."""
        return self._chinese.dictionary


Segmenter = EnglishWords | ChineseCharacters | ChineseWords | AutoSegmenter
SEGMENTERS: dict[str, type[Segmenter]] = {
    "auto": AutoSegmenter,
    "english": EnglishWords,
    "chinese": ChineseWords,
    "characters": ChineseCharacters,
}


def _words(pieces, separator: str) -> Words:
    words = tuple(pieces)
    return Words(words, tuple(i for i, word in enumerate(words) if is_eligible(word)), separator)
