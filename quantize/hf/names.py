"""Which tensors of a checkpoint become linear layers when transformers opens it, found without reading a
weight."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import BUFFERS, Checkpoint
from quantize.checkpoint.library_folder import library_folder
from quantize.checkpoint.weight_files import INDEX, SINGLE
from quantize.errors import Unsupported
from quantize.hf.ahead import ahead
from quantize.hf.load import torch_dtype
from quantize.hf.plain_decoders import parameters
from quantize.hf.refusals import refusals
from quantize.hf.watched import NONE, Uses, linear_uses
from quantize.hf.wrappers import auto_class, beside_text, lies_in, ties_head
from quantize.quiet import quiet
from quantize.terminal import printable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

IGNORED = BUFFERS
#: classes of routers that read the weight of a layer within them, and do not call it
MULTIPLYING_ROUTERS = ("LongcatFlashTopkRouter",)
HEAD, EMBEDDING = "lm_head", "model.embed_tokens.weight"  # of the decoders that need not be built


@dataclass(frozen=True)
class Layers:
    """Module names of a text model's linear layers, with (out, in); ``head`` is its output layer, or None.

    ``source`` maps the names of parameters in the model to those in the checkpoint's files; ``buffers`` are
    tensors of the files that the model computes itself; ``stored_head`` is a tied head's own tensor, where
    the files hold one. ``beside``: modules of a model that also sees which are not its text model;
    ``linear_beside``: their linear layers, without those that embed or that other code takes apart.
    """

    linear: dict[str, tuple[int, int]]
    head: str | None
    tied: bool
    source: dict[str, str]
    buffers: tuple[str, ...] = ()
    stored_head: str | None = None
    uses: Uses = NONE
    beside: tuple[str, ...] = ()
    linear_beside: dict[str, tuple[int, int]] = field(default_factory=dict)

    def tensor(self, module: str) -> str:
        """The checkpoint's name of a layer's weight (of the embedding, for a tied head)."""
        return self.source.get(f"{module}.weight", f"{module}.weight")


def empty_model(
    checkpoint: Checkpoint, dtype: str = "float32", tied: bool | None = None, buffers: bool = True
) -> "PreTrainedModel":
    """The architecture with parameters on the meta device, ``buffers`` real or not; ``tied`` overrides
    tie_word_embeddings, as a ``checkpoint.config`` that unties does.

    Errors: Unsupported where transformers lacks it.
    """
    trust = checkpoint.trust_remote_code
    with quiet(), library_folder(checkpoint.folder, trust, source=checkpoint.source) as folder:
        import torch
        from accelerate import init_empty_weights
        from transformers import AutoConfig

        with refusals(checkpoint.source, "refuses its config.json", "; GGUF recipes may work"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
        if tied is None and _untied(checkpoint.config):
            tied = False
        if tied is not None:
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = tied
        kind = printable(checkpoint.model_type, 100)
        makes = f"has no language model for model_type {kind!r}"
        place = init_empty_weights() if buffers else torch.device("meta")
        with refusals(checkpoint.source, makes, "; GGUF recipes may work"), place:
            model: PreTrainedModel = auto_class(config).from_config(
                config, dtype=torch_dtype(dtype), trust_remote_code=trust
            )
    return model


def _untied(config: Mapping[str, Any]) -> bool:
    """Whether all of it says so: ``checkpoint.config`` may, where the folder's config.json does not."""
    parts = [config, *([text] if isinstance(text := config.get("text_config"), dict) else [])]
    return all(part.get("tie_word_embeddings") is False for part in parts)


@lru_cache(maxsize=1)
def find_layers(checkpoint: Checkpoint) -> Layers:
    """A cache of the last answer: a conversion asks several times about one checkpoint.

    Errors: Unsupported where transformers lacks the architecture, or its names or shapes are not those of the
    files.
    """
    if not checkpoint.usual_files:
        files = ", ".join(checkpoint.weight_files[:2])
        raise Unsupported(
            f"{checkpoint.source}: transformers opens {SINGLE} or {INDEX} with its "
            f"shards, and the weights are in {files}; rename a single file to {SINGLE}"
        )
    # Told from the config where every tensor of the files has its place so; else the architecture is built.
    told = parameters(checkpoint.config)
    if told is not None and all(told[0].get(name) == info.shape for name, info in checkpoint.tensors.items()):
        _, linear, tied = told
        source = {name: name for name in checkpoint.tensors}
        stored_head = source.get(f"{HEAD}.weight") if tied and EMBEDDING in source else None
        if tied and EMBEDDING in source:
            source[f"{HEAD}.weight"] = EMBEDDING
        return Layers(linear, HEAD, tied, source, stored_head=stored_head)
    return _built_layers(checkpoint)


def _built_layers(checkpoint: Checkpoint) -> Layers:
    model = empty_model(checkpoint, buffers=False)
    tied = ties_head(model)
    output = model.get_output_embeddings()
    head = next((name for name, module in model.named_modules() if module is output), None)
    linear, beside, linear_beside = linear_layers(model)
    shapes = {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    source, ignored = {}, []
    buffers, place = dict(model.named_buffers()), renaming(model)
    stored, later = model.state_dict().keys() - shapes.keys(), ahead(checkpoint)
    for name, info in checkpoint.tensors.items():
        if name in later:
            continue
        known = name if name in shapes else place(name)
        if known not in shapes:
            if name in stored or known in stored:  # a buffer that transformers reads from the files
                continue
            if name.endswith(IGNORED) or name in buffers or known in buffers:
                ignored.append(name)
                continue
            raise Unsupported(
                f"{checkpoint.source}: tensor {name} has no counterpart in "
                f"transformers' {type(model).__name__} (it merges or "
                "renames tensors when it loads them); GGUF recipes may work"
            )
        if shapes[known] != info.shape:
            raise Unsupported(
                f"{checkpoint.source}: tensor {name} has shape {list(info.shape)}, but its config.json "
                f"implies {list(shapes[known])}; fetch config and weights of the same model"
            )
        source[known] = name
    stored_head = None
    if tied and head is not None:
        embedding = next((n for n, m in model.named_modules() if m is model.get_input_embeddings()), None)
        if embedding is not None and f"{embedding}.weight" in source:
            stored_head = source.get(f"{head}.weight")
            source[f"{head}.weight"] = source[f"{embedding}.weight"]
    uses = linear_uses(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
    return Layers(linear, head, tied, source, tuple(ignored), stored_head, uses, beside, linear_beside)


Linears = dict[str, tuple[int, int]]


def linear_layers(model: "PreTrainedModel") -> tuple[Linears, tuple[str, ...], Linears]:
    """(those of the text model and its output layer, the modules beside it, their linear layers), routers
    left out; and beside the text model what embeds patches, whose weight code may ask for its dtype, and
    subclasses, whose weight it may take (``MultiheadAttention.out_proj``)."""
    import torch

    beside, routers = beside_text(model), router_layers(model)
    linear: Linears = {}
    others: Linears = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name in routers:
            continue
        shape = (module.out_features, module.in_features)
        if not lies_in(name, beside):
            linear[name] = shape
        elif type(module) is torch.nn.Linear and "embed" not in name:
            others[name] = shape
    return linear, beside, others


def own_linear_layers(model: "PreTrainedModel") -> frozenset[str]:
    """Names of linear layers of a class of the model's own (Falcon's), which transformers leaves where it
    puts bitsandbytes' layers."""
    import torch

    return frozenset(
        name
        for name, each in model.named_modules()
        if isinstance(each, torch.nn.Linear) and type(each) is not torch.nn.Linear
    )


def router_layers(model: "torch.nn.Module") -> frozenset[str]:
    """Linear layers that also choose experts (PhiMoE's), or whose weight a router multiplies with by itself:
    a library that puts its own layer in their place would break the model."""
    import torch

    def chooses(module: torch.nn.Module) -> bool:
        kind = type(module)
        return kind.forward is not torch.nn.Linear.forward and "router" in kind.__name__.lower()

    layers = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
    own = [name for name, each in layers.items() if chooses(each)]
    owners = [name for name, each in model.named_modules() if type(each).__name__ in MULTIPLYING_ROUTERS]
    return frozenset(own + [name for name in layers if name.rpartition(".")[0] in owners])


def renaming(model: "PreTrainedModel") -> "Callable[[str], str | None]":
    """Name in a file -> name in the model, as from_pretrained renames (``embed_out`` of GPT-NeoX is
    ``lm_head`` now, a prefix comes or goes); None for a tensor that it merges with others or takes apart."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    transforms = get_model_conversion_mapping(model)
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    renamings: list[Any] = [each for each in transforms if not isinstance(each, WeightConverter)]
    state = model.state_dict()

    def place(name: str) -> str | None:
        renamed, merged = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        return None if merged else renamed

    return place


def renamed_again(model: "PreTrainedModel") -> frozenset[str]:
    """Linear layers whose weights from_pretrained does not find under their own names: a pattern for the
    checkpoint's fits those as well (``mlp.shared_expert.`` of Laguna, whose last dot stands for any
    letter)."""
    import torch

    place = renaming(model)
    own = (f"{name}.weight" for name, each in model.named_modules() if isinstance(each, torch.nn.Linear))
    return frozenset(name.removesuffix(".weight") for name in own if place(name) not in (None, name))


def untied(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` of a model whose output layer is not its embedding."""
    change = {"tie_word_embeddings": False}
    if isinstance(config.get("text_config"), dict):
        config = {**config, "text_config": {**config["text_config"], **change}}
    return {**config, **change}


def kept_notes(
    checkpoint: Checkpoint,
    quantized: set[str],
    layers: Layers,
    library: str,
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> list[Note]:
    """A note for every matrix that the library left in the source's precision, and why; ``reasons``: by
    tensor, where known."""
    notes = []
    head = layers.tensor(layers.head) if layers.head else None
    for name, info in checkpoint.tensors.items():
        if name in quantized or len(info.shape) < 2:
            continue
        if name in reasons:
            why = reasons[name]
        elif name == head and layers.tied:
            why = "the output layer is tied to the embedding, and a lookup needs its rows"
        elif name == head:
            why = "the output layer, which decides every token, is not quantized"
        else:
            why = f"{library} quantizes linear layers only"
        notes.append(Note(tensor=name, what=f"kept as {info.dtype}", why=why))
    return notes
