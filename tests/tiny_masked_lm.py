"""A BERT masked LM of a few kilobytes: untrained, its weights wide enough that answers differ by place."""

from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ENGLISH = "the a movie film was great bad very good not plot actor , . ! ' don t s".split()
ENGLISH += "watch love hate boring dog king".split()
PIECES = ["un", "##watch", "##able", "##ly", "##s", "great", "##est"]
CHINESE = list(
    "\u7535\u5f71\u597d\u770b\u4e2d\u56fd\u5317\u4eac\u670d\u52a1\u9152\u5e97\u623f\u95f4\u73af\u5883\u5f88"
    "\u4e0d\u9519\u7684\u4eba\u5927\u5b66\u751f\u5929\u6c14\u4eca\u660e\u65e5\u8001\u5e08\u5b66\u6821\u5de5\u4f5c"
)


def save_masked_lm(folder: Path, extra_words: list[str] | None = None, positions: int = 128) -> Path:
    """Writes model and tokenizer; `extra_words` join the vocabulary."""
    vocabulary = list(dict.fromkeys([*SPECIAL, *ENGLISH, *PIECES, *CHINESE, *(extra_words or [])]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast.from_pretrained(folder, do_lower_case=True).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=positions,
        initializer_range=0.5,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder
