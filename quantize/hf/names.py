"""Which tensors of a checkpoint become linear layers when transformers opens it, found without reading a weight."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantize.artifact import Note
from quantize.checkpoint import BUFFERS, Checkpoint
from quantize.errors import Unsupported
from quantize.hf.load import torch_dtype
from quantize.hf.plain_decoders import parameters
from quantize.hf.quiet import quiet
from quantize.hf.refusals import refusals
from quantize.terminal import printable
from quantize.weight_files import INDEX, SINGLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = BUFFERS
HEAD, EMBEDDING = "lm_head", "model.embed_tokens.weight"  # of the decoders that need not be built


@dataclass(frozen=True)
class Layers:
    """Module names of a model's linear layers, with (out, in); ``head`` is its output layer, or None where it has none.

    ``source`` maps the names of parameters in the model to those in the checkpoint's files.
    """

    linear: dict[str, tuple[int, int]]
    head: str | None
    tied: bool
    source: dict[str, str]

    def tensor(self, module: str) -> str:
        """The checkpoint's name of a layer's weight (of the embedding, for a tied head)."""
        return self.source.get(f"{module}.weight", f"{module}.weight")


def empty_model(
    checkpoint: Checkpoint, dtype: str = "float32", tied: bool | None = None, buffers: bool = True
) -> "PreTrainedModel":
    """The architecture with parameters on the meta device, ``buffers`` real or not; ``tied`` overrides tie_word_embeddings.

    Errors: Unsupported where transformers lacks it.
    """
    with quiet():
        import torch
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM

        with refusals(checkpoint.source, "refuses its config.json", "; GGUF recipes may take it"):
            config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
        if tied is not None:
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = tied
        kind = printable(checkpoint.model_type, 100)
        makes = f"has no causal language model for model_type {kind!r}"
        place = init_empty_weights() if buffers else torch.device("meta")
        with refusals(checkpoint.source, makes, "; GGUF recipes may take it"), place:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=torch_dtype(dtype), trust_remote_code=checkpoint.trust_remote_code
            )
    return model


_last: list[tuple[Checkpoint, Layers]] = []


def find_layers(checkpoint: Checkpoint) -> Layers:
    """Remembers the last answer: a conversion asks several times about one checkpoint.

    Errors: Unsupported where transformers lacks the architecture, or its names or shapes are not those of the files.
    """
    if not checkpoint.usual_files:
        files = ", ".join(sorted({info.file.name for info in checkpoint.tensors.values()})[:2])
        raise Unsupported(
            f"{checkpoint.source}: transformers opens {SINGLE} or {INDEX} with its shards, and the weights are in {files}; "
            f"rename a single file to {SINGLE}"
        )
    if not _last or _last[0][0] is not checkpoint:
        _last[:] = [(checkpoint, _find_layers(checkpoint))]
    return _last[0][1]


def _find_layers(checkpoint: Checkpoint) -> Layers:
    """Told from the config where every tensor of the files has its place so; else the architecture is built."""
    told = parameters(checkpoint.config)
    if told is not None and all(told[0].get(name) == info.shape for name, info in checkpoint.tensors.items()):
        _, linear, tied = told
        source = {name: name for name in checkpoint.tensors}
        if tied and f"{HEAD}.weight" not in source and EMBEDDING in source:
            source[f"{HEAD}.weight"] = EMBEDDING
        return Layers(linear, HEAD, tied, source)
    return _built_layers(checkpoint)


def _built_layers(checkpoint: Checkpoint) -> Layers:
    import torch

    model = empty_model(checkpoint, buffers=False)
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    output = model.get_output_embeddings()
    linear, head = {}, None
    for name, module in model.named_modules():
        if module is output:
            head = name
        if isinstance(module, torch.nn.Linear):
            linear[name] = (module.out_features, module.in_features)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    source = {}
    prefix = f"{model.base_model_prefix}."
    for name, info in checkpoint.tensors.items():
        known = name if name in shapes else prefix + name if prefix + name in shapes else None
        if known is None:
            if name.endswith(IGNORED) or name in dict(model.named_buffers()):
                continue
            raise Unsupported(
                f"{checkpoint.source}: tensor {name} has no place of that name in transformers' {type(model).__name__} "
                "(it merges or renames tensors when it loads them); GGUF recipes may take it"
            )
        if shapes[known] != info.shape:
            raise Unsupported(
                f"{checkpoint.source}: tensor {name} has shape {list(info.shape)}, "
                f"and its config.json means {list(shapes[known])}; fetch config and weights of the same model"
            )
        source[known] = name
    if tied and head is not None and f"{head}.weight" not in source:
        embedding = next((n for n, m in model.named_modules() if m is model.get_input_embeddings()), None)
        if embedding is not None and f"{embedding}.weight" in source:
            source[f"{head}.weight"] = source[f"{embedding}.weight"]
    return Layers(linear, head, tied, source)


def kept_notes(checkpoint: Checkpoint, quantized: set[str], layers: Layers, library: str) -> list[Note]:
    """A note for every matrix that the library left in the source's precision, and why."""
    notes = []
    head = layers.tensor(layers.head) if layers.head else None
    for name, info in checkpoint.tensors.items():
        if name in quantized or len(info.shape) < 2:
            continue
        if name == head and layers.tied:
            why = "the output layer is tied to the embedding, and a lookup needs its rows"
        elif name == head:
            why = "the output layer, which decides every token, is left alone"
        else:
            why = f"{library} quantizes linear layers only"
        notes.append(Note(tensor=name, what=f"kept as {info.dtype}", why=why))
    return notes
