"""The tensors of a checkpoint that a loaded model reads from its files, and what else they hold."""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import Unsupported
from quantize.hf.ahead import ahead, ahead_notes
from quantize.hf.loaded import loaded
from quantize.hf.names import Layers, find_layers, untied


@lru_cache(maxsize=1)
def needed(checkpoint: Checkpoint) -> tuple[Checkpoint, tuple[Note, ...]]:
    """Without the tensors that a loaded model does not read from the files: buffers, what predicts further
    tokens, and a tied head that is stored anyway. transformers uses a stored head that differs from the
    embedding: then the model is not tied, whatever its config says.

    A cache of the last answer, as ``find_layers`` is.
    """
    later = ahead(checkpoint)
    said = tuple(ahead_notes(later, checkpoint.architecture))
    if later:
        there = {name: info for name, info in checkpoint.tensors.items() if name not in later}
        checkpoint = replace(checkpoint, tensors=there)
    try:
        layers = _layers(checkpoint)
    except Unsupported:  # said by the method's own check, where it needs to know the layers
        return checkpoint, said
    left_out = dict.fromkeys(layers.buffers, "the model computes it itself")
    notes, config = [], checkpoint.config
    if layers.stored_head and layers.head:
        embedding = layers.source[f"{layers.head}.weight"]
        if _same(checkpoint, layers.stored_head, embedding):
            left_out[layers.stored_head] = f"it equals {embedding}, to which the config ties it"
        else:
            config = untied(config)
            why = f"{layers.stored_head} is not {embedding}, so transformers uses both"
            notes.append(Note(tensor=layers.stored_head, what="tie_word_embeddings is set to false", why=why))
    if not left_out and not notes:
        return checkpoint, said
    notes += [Note(tensor=name, what="left out", why=why) for name, why in left_out.items()]
    tensors = {name: info for name, info in checkpoint.tensors.items() if name not in left_out}
    return replace(checkpoint, tensors=tensors, config=config), (*said, *notes)


def _layers(checkpoint: Checkpoint) -> Layers:
    """As transformers names them, where it need not rename; else as it has them once they are loaded."""
    try:
        return find_layers(checkpoint)
    except Unsupported:
        return loaded(checkpoint).layers


def _same(checkpoint: Checkpoint, one: str, other: str) -> bool:
    if checkpoint.tensors[one].shape != checkpoint.tensors[other].shape:
        return False
    if checkpoint.tensors[one].dtype == checkpoint.tensors[other].dtype:
        return np.array_equal(checkpoint.read(one), checkpoint.read(other))
    return np.array_equal(checkpoint.read_float32(one), checkpoint.read_float32(other))
