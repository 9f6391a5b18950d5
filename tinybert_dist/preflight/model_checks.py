"""Do teacher, student and tokenizer fit each other?"""

import copy
from collections.abc import Iterator
from typing import Any

from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig

from tinybert_dist.config import UserError
from tinybert_dist.data.labels import map_labels
from tinybert_dist.distill.losses import choose_relation_heads
from tinybert_dist.models import lowers, no_trained_head, set_labels
from tinybert_dist.preflight.findings import Finding, error, ok, warning
from tinybert_dist.preflight.models import EMBEDDINGS, Model, Planned, Stored
from tinybert_dist.preflight.subject import Subject
from tinybert_dist.students import require_copyable
from tinybert_dist.training.layout import require_rows
from tinybert_dist.training.student import check_same_vocabulary, require_equal_vocabularies

HEAD = ("classifier.bias", "classifier.weight")


def check_teacher(subject: Subject) -> Iterator[Finding]:
    """The teacher is an encoder, and its files are whole."""
    if subject.teacher is not None:
        yield from _check_model(subject.teacher, "augment" if subject.stage == "augment" else "teacher")


def check_student(subject: Subject) -> Iterator[Finding]:
    """The student, or the model to score, is an encoder, and its files are whole."""
    if subject.student is not None:
        yield from _check_model(subject.student, "student")


def check_tokenizer(subject: Subject) -> Iterator[Finding]:
    """One vocabulary and one way to cut text for both models, and a row for each of its ids."""
    tokenizer = subject.tokenizer
    special = {
        name: getattr(tokenizer, f"{name}_token")
        for name in ("pad", "cls", "sep", *(["mask"] if _needs_mask(subject) else []))
    }
    if missing := [name.upper() for name, token in special.items() if token is None]:
        yield error(
            f"the tokenizer of {subject.vocabulary.name} has no {', '.join(missing)} token.",
            "Give a BERT-like encoder with its own tokenizer.",
        )
        return
    yield ok(f"{subject.vocabulary.name}: {len(tokenizer):,} pieces, {_case(tokenizer)}")
    if subject.stage == "prepare_corpus":
        return  # no model is run
    if subject.teacher is not None and subject.student is not None:
        yield from _check_students_tokenizer(subject)
    # augment cuts its queries to what the model holds
    length = 0 if subject.stage == "augment" else subject.config.max_seq_length
    for model in filter(None, (subject.teacher, subject.trained)):
        require_rows(model.config, model.name, len(tokenizer), length)
        pad = model.config.pad_token_id
        if pad is not None and pad != tokenizer.pad_token_id:
            yield warning(
                f"{model.name}: pad_token_id {pad} in its config, {tokenizer.pad_token_id} in the tokenizer.",
                "Correct config.json if they belong together, else give the tokenizer of this model.",
            )


def check_pair(subject: Subject) -> Iterator[Finding]:
    """Depths, widths, heads and the layer map of teacher and student."""
    config, teacher, student = subject.config, subject.teacher, subject.student
    if teacher is None or student is None or getattr(config, "do_eval", False):
        return
    theirs, own = teacher.config, student.config
    prediction = getattr(config, "pred_distill", False)
    config.weights(prediction)
    wanted, layers = config.num_relation_heads, getattr(config, "init_from_teacher_layers", None)
    try:
        heads = choose_relation_heads(
            own.num_attention_heads, own.hidden_size, theirs.num_attention_heads, theirs.hidden_size, wanted
        )
    except ValueError as problem:
        raise UserError(f"--num_relation_heads: {problem}") from problem
    if layers and isinstance(student, Planned):
        require_copyable(own, theirs, layers)
    if prediction:
        return
    layer_map = config.build_map(own, theirs)
    yield ok(f"layers {layer_map} (student:teacher), {heads} heads compared")
    if config.attention_weight and heads < min(own.num_attention_heads, theirs.num_attention_heads):
        yield warning(
            f"attention is compared over {heads} heads: the student has {own.num_attention_heads} of width "
            f"{own.hidden_size}, the teacher {theirs.num_attention_heads} of width {theirs.hidden_size}.",
            "Give the student a width that shares more divisors with the teacher's, or as many heads.",
        )
    if subject.stage == "task_distill" and (config.hidden_weight or config.embedding_weight):
        yield from _check_projection(student, theirs)


def check_labels(subject: Subject) -> Iterator[Finding]:
    """Names and number of the classes in the data and in the models' heads."""
    config = subject.config
    if subject.stage in {"evaluate", "export"} or getattr(config, "do_eval", False):
        heads = [(subject.student, True)]
    elif subject.stage == "finetune_teacher":
        heads = [] if subject.teacher is None or config.replace_head else [(subject.teacher, False)]
    else:
        heads = [(subject.teacher, True), (subject.student, False)]
    for model, must_be_trained in heads:
        if model.num_trained is None and must_be_trained:
            raise no_trained_head(model.name, HEAD)
    if not config.data_dir:
        return  # export without data to score on
    spec, seen = subject.task.spec, subject.task.labels_seen
    for model, _ in heads:
        file = model.weights_file if isinstance(model, Stored) else model.name
        if model.num_trained is None:
            continue
        if seen and model.labels and (strange := _unknown(seen, model.labels)):
            yield error(
                f"{file}: its labels are {', '.join(model.labels)}; the data also has {', '.join(strange)}.",
                "Correct id2label in its config.json if the names mean the same, or give another model.",
            )
        if seen:
            continue
        regression = spec.mode == "regression"
        named = copy.deepcopy(model.config)
        kind = "regression" if regression else "single_label_classification"
        set_labels(named, spec.labels or None, kind, None, model.num_trained, file)
        if not regression:
            map_labels(spec.labels, model.labels or spec.labels, model.num_trained)
    yield ok(f"{spec.mode}: {', '.join((spec.labels or seen)[:12]) or 'one number'}")


def check_masked_lm(subject: Subject) -> Iterator[Finding]:
    """The model that augments has its masked-LM head."""
    model = subject.teacher
    assert model is not None  # --pretrained_bert_model is required
    if not model.has_masked_lm_head:  # type: ignore[attr-defined]
        yield error(
            f"--pretrained_bert_model {model.name}: no trained masked-LM head there.",
            "Give the pre-trained model, not one fine-tuned for a task.",
        )


def _check_model(model: Model, role: str) -> Iterator[Finding]:
    config = model.config
    kind = config.model_type
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_MASKED_LM_MAPPING or _decodes(config):
        what = "an encoder-decoder" if config.is_encoder_decoder else "no encoder with a masked-LM form"
        yield error(
            f"{model.name}: {kind} is {what}.",
            "What is distilled here are encoders such as BERT, RoBERTa or ELECTRA.",
        )
        return
    if config.hidden_size % config.num_attention_heads:
        yield error(
            f"{model.name}: hidden_size {config.hidden_size} is no multiple of {config.num_attention_heads} "
            "heads.",
            "Correct its config.json.",
        )
    if isinstance(model, Stored):
        yield from _check_files(model)
    yield ok(
        f"{model.name}: {kind}, {config.num_hidden_layers} layers of {config.hidden_size}, "
        f"{config.num_attention_heads} heads"
    )


def _check_files(model: Stored) -> Iterator[Finding]:
    config, shapes = model.config, model.shapes
    width = getattr(config, "embedding_size", config.hidden_size)
    table = next((shape for name, shape in shapes.items() if name.endswith(EMBEDDINGS)), None)
    if table is not None and table != (config.vocab_size, width):
        yield error(
            f"{model.weights_file}: word embeddings of {table[0]:,} x {table[1]}, by config.json "
            f"{config.vocab_size:,} x {width}.",
            "Use the config of these weights.",
        )
    numbers = [
        int(part) for name in shapes if ".layer." in name for part in name.split(".") if part.isdigit()
    ]
    if numbers and max(numbers) + 1 < config.num_hidden_layers:
        yield error(
            f"{model.weights_file}: weights of {max(numbers) + 1} layers, by config.json "
            f"{config.num_hidden_layers}.",
            "Is this the config.json of these weights, and is the file complete?",
        )


def _check_students_tokenizer(subject: Subject) -> Iterator[Finding]:
    config, teacher, student = subject.config, subject.teacher, subject.student
    assert teacher is not None and student is not None
    lower = getattr(config, "do_lower_case", None)
    if isinstance(student, Planned):
        if subject.earlier.model(student.name) is not None:  # a new student speaks as its teacher
            own, other = student.tokenizer(lower, None).get_vocab(), subject.tokenizer.get_vocab()
            require_equal_vocabularies(own, other, student.name, teacher.name)
        return
    folder = str(student.folder) if isinstance(student, Stored) else student.name
    check_same_vocabulary(subject.tokenizer, folder, teacher.name, lower)
    names = ("vocab.txt", "tokenizer.json")
    if isinstance(student, Stored) and any((student.folder / name).is_file() for name in names):
        does = [_case(student.tokenizer(lower, None)), _case(subject.tokenizer)]
        if does[0] != does[1]:
            yield warning(
                f"the tokenizer of {student.name} {does[0]}, that of {teacher.name} {does[1]}.",
                "The student will be trained as the teacher reads; correct the tokenizer_config.json that is "
                "wrong.",
            )


def _check_projection(student: Model, teacher: PreTrainedConfig) -> Iterator[Finding]:
    width = student.projection_width
    if width is None:
        yield warning(
            f"{student.name}: no projections beside the weights, so step 1 starts new ones.",
            "Give the output folder of general_distill with its projections.safetensors.",
        )
    elif width != teacher.hidden_size:
        yield warning(
            f"{student.name}: its projections lead to width {width}, the teacher's is {teacher.hidden_size}: "
            "the student was distilled from another teacher.",
            "Distil it from this one (general_distill --teacher_model), or step 1 starts new projections.",
        )


def _unknown(seen: tuple[str, ...], known: tuple[str, ...]) -> list[str]:
    folded = {name.casefold() for name in known}
    return sorted(name for name in seen if name.casefold() not in folded)[:12]


def _case(tokenizer: Any) -> str:
    return "lower-cases" if lowers(tokenizer) else "keeps capitals"


def _decodes(config: PreTrainedConfig) -> bool:
    return bool(getattr(config, "is_decoder", False))


def _needs_mask(subject: Subject) -> bool:
    return subject.stage == "augment" or subject.has("pretrain_file_path")
