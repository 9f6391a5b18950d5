"""The formats of an exported classifier: written, run, compared with the first of them.

Shapes: B texts, S longest of them, C classes.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from tinybert_dist.config import StageFailed
from tinybert_dist.export import onnx_files
from tinybert_dist.micro_batch import MicroBatch
from tinybert_dist.model_build import quiet_loading
from tinybert_dist.training.evaluation import logits_of
from tinybert_dist.training.scoring import Scorer

FILES = {"transformers": "model.safetensors", "onnx": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}
TOLERANCE = 1e-4  # of the largest logit, or of 1: float32 sums in another order

Classify = Callable[[Tensor, Tensor, Tensor], np.ndarray]
"""int64 [B, S] ids, mask and segments -> logits [B, C]"""


def write(
    folder: Path, wanted: Collection[str], tokenizer: PreTrainedTokenizerFast, facts: Mapping[str, Any]
) -> dict[str, Classify]:
    """Writes the ONNX files `wanted` of the transformers model in `folder`; every format as it will be used.

    `facts` become the files' metadata.
    """
    model = _load(folder)
    segments = getattr(model.config, "type_vocab_size", 0) > 1
    segments = segments and "token_type_ids" in tokenizer.model_input_names
    classifiers: dict[str, Classify] = {"transformers": of_model(model, segments)}
    if not {"onnx", "int8"} & set(wanted):
        return classifiers
    (folder / "onnx").mkdir()
    exact, small = folder / FILES["onnx"], folder / FILES["int8"]
    onnx_files.write_onnx(
        _load(folder, attn_implementation="eager"), exact, segments=segments, metadata=facts
    )
    if "int8" in wanted:
        onnx_files.write_int8(exact, small, facts)
    if "onnx" not in wanted:
        exact.unlink()
    threads = torch.get_num_threads()
    files = {name: folder / file for name, file in FILES.items() if name in ("onnx", "int8")}
    return classifiers | {
        name: onnx_files.OnnxClassifier(file, threads) for name, file in files.items() if file.exists()
    }


def _load(folder: Path, **options: Any) -> PreTrainedModel:
    # as anybody loads it: not with the attention of this package
    with quiet_loading():
        return AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()


def of_model(model: PreTrainedModel, segments: bool) -> Classify:
    """A transformers model on the CPU."""

    @torch.inference_mode()
    def classify(input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> np.ndarray:
        given = {"token_type_ids": token_type_ids} if segments else {}
        return model(input_ids=input_ids, attention_mask=attention_mask, **given).logits.numpy()

    return classify


def compare(
    classifiers: Mapping[str, Classify], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> dict[str, dict[str, float]]:
    """Per format the largest difference of any logit from transformers' own, on ragged batches.

    Raises StageFailed when float32 ONNX differs by more than the order of its sums can explain.
    """
    reference = classifiers["transformers"]
    batches = list(ragged_batches(len(tokenizer), tokenizer.pad_token_id, max_length))
    expected = [reference(*batch) for batch in batches]
    scale = max(1.0, *(float(np.abs(logits).max()) for logits in expected))
    result = {}
    for name, classify in classifiers.items():
        pairs = zip((classify(*batch) for batch in batches), expected, strict=True)
        difference = max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)
        if name == "onnx" and not difference <= TOLERANCE * scale:  # NaN too
            raise StageFailed(
                f"the ONNX file gives logits {difference:.2g} away from the model's own: not written. "
                "--formats transformers exports without it."
            )
        result[name] = {"largest_logit_difference": difference}
    return result


def table(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row of numbers per format of export.json: size, score, latency and throughput at every size."""
    rows = []
    for name, entry in record["formats"].items():
        row = {"format": name, "size_mb": entry["size_mb"], "score": entry.get("score")}
        for point in entry["speed"]:
            size = f"{point['batch_size']}x{point['length_tokens']}"
            row[f"latency_ms_{size}"] = point["latency_ms"]["p50"]
            row[f"texts_per_s_{size}"] = point["throughput_per_s"]
        rows.append(row)
    return rows


def ragged_batches(vocab_size: int, pad_token_id: int, max_length: int):
    """Ids, mask and segments of one text of one token, of three and of max_length, and of several texts."""
    generator = torch.Generator().manual_seed(0)
    middle = max(1, max_length // 3)
    for lengths in ([1], [3], [max_length], [1, max_length, middle], [middle, 2, 5, 1, middle], [2, 2]):
        lengths_B1 = torch.tensor(lengths).clamp(max=max_length).unsqueeze(1)
        position_S = torch.arange(int(lengths_B1.max()))
        mask_BS = (position_S < lengths_B1).long()
        ids_BS = torch.randint(0, vocab_size, mask_BS.shape, generator=generator)
        segments_BS = (position_S > lengths_B1 // 2).long() * mask_BS
        yield torch.where(mask_BS.bool(), ids_BS, pad_token_id), mask_BS, segments_BS


def predictions(classify: Classify, scorer: Scorer, num_outputs: int) -> dict[str, np.ndarray]:
    """Logits of every split of a task, as Scorer.all_logits gives those of a model. Collective."""

    def forward(batch: MicroBatch) -> Tensor:
        assert batch.attention_mask is not None, "padded, not packed"
        ids, mask, segments = (t.cpu() for t in (batch.input_ids, batch.attention_mask, batch.token_type_ids))
        return torch.from_numpy(classify(ids, mask, segments)).to(batch.input_ids.device)

    return {
        split: scorer.in_task_order(
            logits_of(forward, num_outputs, dataset, scorer.collate, scorer.accelerator, scorer.max_tokens)
        )
        for split, dataset in scorer.datasets.items()
    }
