"""A small tokenizer.json, trained with the split of a published family."""

import json
from pathlib import Path

from split_families import Family
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from quantize.gguf.tokenizer.awkward_texts import TEXTS
from quantize.gguf.tokenizer.pre import HARD_PROBES, PROBES


def train(folder: Path, family: Family, size: int = 900) -> None:
    model = {"type": "BPE", "vocab": {}, "merges": []}
    tokenizer = Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "normalizer": family.normalizer,
                "pre_tokenizer": family.pre_tokenizer,
                "model": model,
            }
        )
    )
    trainer = BpeTrainer(
        vocab_size=size,
        initial_alphabet=ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [text for text in (*TEXTS, *PROBES, *HARD_PROBES) for _ in range(3)], trainer
    )
    data = json.loads(tokenizer.to_str())
    data["model"]["ignore_merges"] = family.ignore_merges
    folder.joinpath("tokenizer.json").write_text(json.dumps(data))
