"""How many ids a checkpoint's embedding has rows for."""

from quantize.checkpoint.checkpoint import Checkpoint

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight",
"embed_in.weight",
              "embedding.weight")  # fmt: skip


def embedding_rows(checkpoint: Checkpoint) -> int | None:
    """Rows of the input embedding, or config.json's vocab_size where no tensor has a name of one."""
    for ending in EMBEDDINGS:
        for name, info in checkpoint.tensors.items():
            if (
                (name == ending or name.endswith("." + ending))
                and len(info.shape) == 2
                and "position" not in name
            ):
                return info.shape[0]
    nested = checkpoint.config.get("text_config")
    size = checkpoint.config.get("vocab_size", nested.get("vocab_size") if isinstance(nested, dict) else None)
    return size if isinstance(size, int) else None
