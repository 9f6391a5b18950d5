"""Streams of real and of long texts: the same batches, the same memory, the work done by workers."""

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stream_runs import batches_of, run, stream_of

from tinybert_dist.data import lanes as law
from tinybert_dist.models import load_tokenizer


@pytest.mark.parametrize(("files", "vocab"), [("en/en*", "bert-base-uncased"), ("zh/*", "bert-base-chinese")])
def test_real_corpora(shared_data, monkeypatch, files, vocab):
    tokenizer = load_tokenizer(shared_data / "vocab" / vocab)
    stream = stream_of(shared_data / "corpus" / files, tokenizer, "pairs")
    monkeypatch.setattr(law, "MAX_BLOCK_ROWS", 512)
    expected, _, _ = run(stream, 0, 10)
    steps, positions, _ = run(stream, 0, 8, world_size=2, workers=1)
    assert steps + run(stream, 8, 10, world_size=3, positions=positions)[0] == expected


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path, sentences, workspace):
    """Ten times the text, read as far: at most 5 % more."""
    highest = []
    for copies in (300, 3000):
        with open(tmp_path / "corpus.txt", "w") as file:
            for i in range(copies):
                file.writelines(f"{sentence} {i}\n" for sentence in sentences)
        command = [sys.executable, Path(__file__).with_name("stream_memory.py")]
        command += [tmp_path / "corpus.txt", workspace / "vocab"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        highest.append(int(output))
    print(highest)
    assert highest[1] <= 1.05 * highest[0]


@pytest.mark.slow
@pytest.mark.parametrize(("language", "vocab"), [("en", "bert-base-uncased"), ("zh", "bert-base-chinese")])
def test_workers_do_the_work(shared_data, tmp_path, language, vocab):
    """Prints what the loader alone delivers from raw text; the main process only puts rows together."""
    tokenizer = load_tokenizer(shared_data / "vocab" / vocab)
    texts = sorted((shared_data / "corpus" / language).glob("*.gz"))
    # not compressed, it can be cut into pieces for all lanes
    (tmp_path / "corpus.txt").write_bytes(b"\n".join(gzip.decompress(text.read_bytes()) for text in texts))
    stream = stream_of(tmp_path / "corpus.txt", tokenizer, "pairs", length=128)
    main_cpu_s = []
    for workers in (0, 1, 2):
        size = {"num_lanes": law.LANES, "num_micro_batches": 1, "batch_size": 256, "max_tokens": 16384}
        loader = batches_of(stream, **size).loader(0, 1000, num_workers=workers)
        began_at, cpu_before = time.perf_counter(), time.process_time()
        next(loader)
        first_at = time.perf_counter()
        num_tokens = sum(batch.num_tokens for step in loader for _, batch in step)
        rate = num_tokens / (time.perf_counter() - first_at)
        main_cpu_s.append(time.process_time() - cpu_before)
        print(f"{language}, {workers} workers: first {first_at - began_at:.1f} s, then {rate:,.0f} tokens/s")
    assert max(main_cpu_s[1:]) < 0.5 * main_cpu_s[0]
