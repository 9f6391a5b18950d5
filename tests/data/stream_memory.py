"""stream_memory.py TEXT VOCAB: anonymous memory in bytes, at its highest while the stream is read."""

import sys
from pathlib import Path

from tinybert_dist.data.batches import Collator
from tinybert_dist.data.corpus_part import Recipe
from tinybert_dist.data.lanes import LANES
from tinybert_dist.data.stream import open_stream
from tinybert_dist.data.stream_batches import StreamBatches
from tinybert_dist.models import load_tokenizer

NUM_STEPS, BATCH_SIZE = 40, 8192


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def main(text: str, vocab: str) -> None:
    stream = open_stream(text, load_tokenizer(vocab), Recipe("line", 64))
    lanes, weights = stream.deal(LANES, stream.rows_per_byte)
    batches = StreamBatches(
        lanes, weights, stream.reading, Collator("packed", 0), batch_size=BATCH_SIZE, num_micro_batches=1
    )
    steps = batches.loader(0, NUM_STEPS, num_workers=0)
    highest = max(anonymous_bytes() for _ in steps)
    # further than what is shuffled together
    assert all(position.piece or position.epoch for position in batches.positions.values())
    print(highest)


if __name__ == "__main__":
    main(*sys.argv[1:])
