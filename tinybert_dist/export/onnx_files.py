"""ONNX files of a classifier: written, quantised, run.

Shapes: B texts, S longest of them, C classes.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinybert_dist.config import UserError

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 20  # the first with Gelu, which onnxruntime joins with the bias before it


def require_packages(purpose: str) -> None:
    """Raises UserError naming the extra, and its `purpose` or how to do without, when it is missing."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"{', '.join(missing)} missing: pip install 'tinybert_dist[export]' to {purpose}.")


class _Logits(nn.Module):
    """Ids, mask and, where the model has any, segments -> logits alone."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **segments).logits


def write_onnx(
    model: PreTrainedModel, file: str | Path, *, segments: bool, metadata: Mapping[str, str]
) -> None:
    """float32, batch and sequence of any size; `segments`: whether token_type_ids is an input.

    `model` is a transformers one with its own attention, eager: fewest operators to translate.
    """
    import onnx

    names = ["input_ids", "attention_mask", *(["token_type_ids"] if segments else [])]
    ids_BS = torch.arange(14).reshape(2, 7) % model.config.vocab_size  # sizes 0 and 1 would be fixed
    example = (ids_BS, torch.ones_like(ids_BS), *([torch.zeros_like(ids_BS)] if segments else []))
    with _quiet():
        torch.onnx.export(
            _Logits(model).eval(),
            example,
            str(file),
            input_names=names,
            output_names=["logits"],
            dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in names},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    graph = onnx.load(str(file))
    _forget_sources(graph)
    _describe(graph, metadata)
    onnx.save(graph, str(file))


def write_int8(source: str | Path, file: str | Path, metadata: Mapping[str, str]) -> None:
    """Weights and embeddings in 8 bits, activations quantised as they come: no calibration data."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        # a 7-bit range costs no time and cannot overflow the 16-bit sums of CPUs without VNNI
        quantize_dynamic(str(source), str(file), weight_type=QuantType.QInt8, reduce_range=True)
    graph = onnx.load(str(file))
    _describe(graph, metadata)
    onnx.save(graph, str(file))


def metadata_of(file: str | Path) -> dict[str, Any]:
    """What `write_*` noted in the file: labels, max_length ..."""
    import onnx

    graph = onnx.load(str(file), load_external_data=False)
    return {entry.key: json.loads(entry.value) for entry in graph.metadata_props}


class OnnxClassifier:
    """An ONNX file on the CPU: int64 [B, S] ids, mask, segments -> float32 logits [B, C]."""

    def __init__(self, file: str | Path, num_threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # its threads would go on turning after a call, and take the cores of whoever is timed next
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.inputs = [entry.name for entry in self.session.get_inputs()]

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> np.ndarray:
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        return self.session.run(["logits"], {name: given[name].numpy() for name in self.inputs})[0]


def _forget_sources(graph: Any) -> None:
    # the exporter notes for every node the stack of source files it comes from: paths of this machine
    parts = (graph.graph.node, graph.graph.value_info, graph.graph.input, graph.graph.output)
    for entry in (graph, graph.graph, *(entry for part in parts for entry in part)):
        del entry.metadata_props[:]
        entry.doc_string = ""


def _describe(graph: Any, metadata: Mapping[str, str]) -> None:
    del graph.metadata_props[:]
    for key, value in metadata.items():
        graph.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))


@contextmanager
def _quiet():
    # both tools tell of kernels for pictures and of steps that are optional here; quantize_dynamic also gives
    # the root logger a handler, and with it every later message of this process
    disabled, handlers = logging.root.manager.disable, logging.root.handlers[:]
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers
