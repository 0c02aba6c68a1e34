"""What a case of the families' tests is: settings of a small model, and what it stands for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SMALL = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}  # fmt: skip
#: llama.cpp computes SiLU in float32, GELU through a table of half-precision values
TIGHT, TABLE = 5e-5, 5e-3
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """``settings`` over SMALL go to the config class of ``model_type``.

    ``rewrite`` turns the model's tensors and config into those of a family that transformers does not
    implement (then ``reference`` says what the model stands for). ``tolerance``: largest logit difference
    over the logits' standard deviation.
    """

    name: str
    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    tolerance: float = TIGHT
    without: tuple[str, ...] = ()  # keys of SMALL that this config class does not have
    rewrite: Callable[[Tensors, dict[str, Any]], tuple[Tensors, dict[str, Any]]] | None = None
    reference: str = "transformers"
    architecture: str = ""  # HF class, where ``rewrite`` changes it
    length: int = 48  # of the rows of ids compared
    #: of a model that also sees: its tower's settings; ``settings`` are those of its text model
    vision: dict[str, Any] | None = None

    @property
    def hf_class(self) -> str:
        from transformers.models.auto import modeling_auto

        names = (
            modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
            if self.vision is None
            else modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        )
        return self.architecture or str(names[self.model_type])

    @property
    def gguf_architecture(self) -> str:
        """As the family's file has it."""
        from importlib import import_module
        from types import SimpleNamespace

        from quantize.gguf.families.plan import KNOWN

        module = import_module(f"quantize.gguf.families.{KNOWN[self.hf_class]}")
        family = module.family(SimpleNamespace(architecture=self.hf_class, config=self.settings))
        return str(family.architecture)
