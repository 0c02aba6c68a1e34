"""Everything that ``quantwright inspect`` says about a model."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gguf import MODEL_ARCH_NAMES

from quantize.artifact.artifact import Manifest
from quantize.checkpoint.kv_cache import KvShape, kv_shape
from quantize.checkpoint.model_card import license_files, read_model_card
from quantize.errors import QuantwrightError
from quantize.gguf.to_checkpoint.config import ARCHITECTURES, to_config
from quantize.hf.load import storage_format
from quantize.inspection.opening import Looked
from quantize.inspection.problems import (
    Problem,
    chat,
    embedding_rows,
    folder_problems,
    gguf_problems,
    vocabulary,
)
from quantize.inspection.programs import file_type, known_here, kv_of, loads_in
from quantize.inspection.tensors import PARTS, Weight, folder_weights, gguf_weights
from quantize.inspection.tokenizers import (
    Template,
    Tokenizer,
    folder_chat,
    folder_tokenizer,
    gguf_chat,
    gguf_tokenizer,
)
from quantize.methods.registry import method
from quantize.terminal import printable

WORD, NAME = 80, 200
MOST_SETTINGS = 24


@dataclass(frozen=True)
class Share:
    """Of the tensors of one type, or of one part of the model. ``weights``: None where that is not known."""

    name: str
    tensors: int
    weights: int | None
    size_bytes: int

    @property
    def bits_per_weight(self) -> float | None:
        return 8 * self.size_bytes / self.weights if self.weights else None


@dataclass(frozen=True)
class Description:
    """``method``: the recipe where this program made it, else what the files say. ``weights``: those of the
    model, a tied head that is stored apart not counted; ``tensor_bytes``: all that is stored of them."""

    model: str
    commit: str | None
    kind: str
    architecture: str
    model_type: str
    method: str
    settings: Mapping[str, Any]
    verified: str | None
    size_bytes: int
    tensor_bytes: int
    weights: int | None
    types: tuple[Share, ...]
    parts: tuple[Share, ...]
    tensors: tuple[Weight, ...]
    tokenizer: Tokenizer
    chat_templates: tuple[Template, ...]
    context: int | None
    kv: KvShape | None
    license: str | None
    loads_in: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def bits_per_weight(self) -> float | None:
        return 8 * self.tensor_bytes / self.weights if self.weights else None

    @property
    def kv_bytes_per_token(self) -> int | None:
        """Of a short sequence, in which no window slides yet."""
        return self.kv.bytes_at(1) if self.kv else None

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        found = {name: value for name, value in asdict(self).items() if name != "kv"}
        found["types"] = [{**asdict(s), "bits_per_weight": s.bits_per_weight} for s in self.types]
        found["parts"] = [{**asdict(s), "bits_per_weight": s.bits_per_weight} for s in self.parts]
        found["bits_per_weight"] = self.bits_per_weight
        found["kv_bytes_per_token"] = self.kv_bytes_per_token
        found["kv_cache"] = self.kv.arithmetic if self.kv else None
        return found


def describe(looked: Looked) -> Description:
    """From headers and small files alone. A part of them that cannot be read becomes a problem."""
    problems = [Problem("note", "files", printable(remark, 300)) for remark in looked.remarks]
    return _gguf(looked, problems) if looked.gguf else _folder(looked, problems)


def _gguf(looked: Looked, problems: list[Problem]) -> Description:
    file = looked.gguf
    assert file is not None
    kvs = file.kvs
    architecture = str(kvs.get("general.architecture", ""))
    weights = gguf_weights(file)
    tokenizer, templates = gguf_tokenizer(kvs), gguf_chat(kvs)
    try:
        kv = kv_shape(to_config(file))
    except QuantwrightError:
        kv = kv_of(kvs, architecture)
    context = kvs.get(f"{architecture}.context_length")
    problems += [
        *vocabulary(tokenizer, embedding_rows(weights, {})),
        *chat(f"{looked.model} {kvs.get('general.name', '')}", tokenizer, templates),
        *gguf_problems(file),
    ]
    if architecture not in MODEL_ARCH_NAMES.values() and architecture not in ARCHITECTURES:
        said = printable(architecture, WORD) or "none"
        problems.append(Problem("wrong", "unknown architecture", f"llama.cpp has no {said}"))
    kind = file_type(kvs.get("general.file_type"))
    imatrix = {k.rpartition(".")[2]: v for k, v in kvs.items() if k.startswith("quantize.imatrix.")}
    return _made(
        looked,
        kind="gguf",
        architecture=printable(architecture, WORD),
        model_type=printable(architecture, WORD),
        method=looked.manifest.recipe_short if looked.manifest else f"gguf-{kind}" if kind else "gguf",
        settings={**({"file_type": kind} if kind else {}), **_scalars(imatrix, "imatrix_")},
        weights=weights,
        tied=frozenset(),
        tokenizer=tokenizer,
        templates=templates,
        context=context if type(context) is int else None,
        kv=kv,
        license=kvs.get("general.license"),
        opened_by=method("gguf").format.loads_in,
        problems=problems,
    )


def _folder(looked: Looked, problems: list[Problem]) -> Description:
    config = looked.config
    storage = "mlx" if isinstance(config.get("quantization"), dict) else storage_format(looked.folder, config)
    weights = folder_weights(looked.tensors, config)
    tokenizer, templates = Tokenizer(), list[Template]()
    try:
        tokenizer = folder_tokenizer(looked.folder)
        templates = folder_chat(looked.folder)
    except QuantwrightError as error:
        problems.append(Problem("wrong", "tokenizer", printable(error, 300)))
    if not tokenizer.kind:
        problems.append(Problem("note", "no tokenizer", "no tokenizer.json, tokenizer.model or vocab.json"))
    problems += [
        *vocabulary(tokenizer, embedding_rows(weights, config)),
        *chat(looked.model, tokenizer, templates),
        *folder_problems(config, weights, storage),
    ]
    model_type = str(config.get("model_type", ""))
    if not known_here(model_type) and not config.get("auto_map"):
        said = printable(model_type, WORD) or "none"
        problems.append(
            Problem("wrong", "unknown architecture", f"transformers here has no model_type {said}")
        )
    scheme = config.get("quantization_config") or config.get("quantization") or {}
    dtypes = {w.type for w in weights}
    plain = f"dense {'/'.join(sorted(dtypes))}" if storage == "dense" else printable(storage, WORD)
    kv = kv_shape(config)
    tied = config.get("tie_word_embeddings", (config.get("text_config") or {}).get("tie_word_embeddings"))
    heads = frozenset(w.name for w in weights if w.part == "head") if tied is True else frozenset()
    return _made(
        looked,
        kind="folder",
        architecture=printable((config.get("architectures") or [""])[0], WORD),
        model_type=printable(model_type, WORD),
        method=looked.manifest.recipe_short if looked.manifest else plain,
        settings=_scalars(scheme if isinstance(scheme, dict) else {}),
        weights=weights,
        tied=heads,
        tokenizer=tokenizer,
        templates=templates,
        context=kv.context if kv else None,
        kv=kv,
        license=None,
        opened_by=loads_in(storage, scheme),
        problems=problems,
    )


def _made(
    looked: Looked,
    *,
    weights: list[Weight],
    tied: frozenset[str],
    templates: list[Template],
    license: Any,
    opened_by: tuple[str, ...],
    problems: list[Problem],
    **facts: Any,
) -> Description:
    names = license if isinstance(license, str) else None
    try:
        names = names or read_model_card(looked.folder).license
        files = [path.name for path in license_files(looked.folder)]
    except QuantwrightError as error:
        files = []
        problems.append(Problem("note", "card", printable(error, 300)))
    if looked.manifest and not names:
        names = looked.manifest.source.license
    if not names and not files:
        problems.append(Problem("note", "no licence", "neither its card nor a file names one"))
    clean = [
        Weight(printable(w.name, NAME), w.shape, w.type, w.weights, w.size_bytes, w.part) for w in weights
    ]
    manifest = looked.manifest
    bounded: dict[str, Any] = {
        key: printable(value, NAME) if isinstance(value, str) else value for key, value in facts.items()
    }
    return Description(
        model=looked.model,
        commit=looked.commit,
        verified=_verified(manifest) if manifest else None,
        size_bytes=looked.size_bytes,
        tensor_bytes=sum(w.size_bytes for w in weights),
        weights=_total(w for w in weights if w.name not in tied),
        types=_shares(clean, "type"),
        parts=_shares(clean, "part", PARTS),
        tensors=tuple(clean),
        chat_templates=tuple(templates),
        license=printable(names, NAME) if names else ", ".join(printable(n, WORD) for n in files[:4]) or None,
        loads_in=tuple(printable(p, WORD) for p in manifest.loads_in) if manifest else opened_by,
        problems=tuple(problems),
        **bounded,
    )


def _verified(manifest: Manifest) -> str | None:
    said = manifest.verification
    return said.level if said.passed and said.level != "none" else None


def _total(weights: Iterable[Weight]) -> int | None:
    counts = [w.weights for w in weights]
    return None if None in counts else sum(c for c in counts if c is not None)


def _shares(weights: list[Weight], by: str, order: tuple[str, ...] = ()) -> tuple[Share, ...]:
    found: dict[str, list[Weight]] = {}
    for weight in weights:
        found.setdefault(getattr(weight, by), []).append(weight)
    shares = [
        Share(name, len(members), _total(members), sum(m.size_bytes for m in members))
        for name, members in found.items()
    ]
    key = (lambda s: order.index(s.name)) if order else (lambda s: -s.size_bytes)
    return tuple(sorted(shares, key=key))


def _scalars(said: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Plain values only, bounded: texts come from whoever wrote the file."""
    kept: dict[str, Any] = {}
    for key, value in said.items():
        if (
            isinstance(value, (str, int, float, bool))
            and len(kept) < MOST_SETTINGS
            and not key.startswith("_")
        ):
            kept[prefix + printable(key, WORD)] = printable(value, WORD) if isinstance(value, str) else value
    return kept
