"""The models of a job, opened: a checkpoint, or a checkpoint with a LoRA merged into it, which counts as a
separate model."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.spec import Job, Model, resolve_path
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.dtypes import dense
from quantize.errors import BadInput, QuantwrightError, Unsupported
from quantize.recipe import DenseRecipe, Recipe
from quantize.sources.adapter import open_adapter
from quantize.sources.opening import open_checkpoint

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class OpenModel:
    """One model of the job: ``name`` for folders, ``id`` for command lines (an absolute path or a Hub id).

    ``checkpoint``: the base's tensors and config, which are the merged model's too but for what the adapter
    resizes.
    """

    spec: Model
    name: str
    id: str
    checkpoint: Checkpoint | None
    problem: str = ""
    adapter: Path | None = None

    @property
    def label(self) -> str:
        """The model as manifests name it."""
        return f"{self.id}+{self.adapter.name}" if self.adapter else self.id

    @property
    def sources(self) -> tuple[Checkpoint, ...]:
        return (self.checkpoint,) if self.checkpoint is not None else ()

    def artifact_name(self, recipe: Recipe) -> str:
        """Where in the run folder its artifact lies, which is also what results call it."""
        return f"artifacts/{self.name}/{recipe.slug}"

    @property
    def merged(self) -> Recipe | None:
        """With an adapter: the recipe that writes the merged model, in its dtype, to compare with."""
        if self.adapter is None or self.checkpoint is None:
            return None
        return DenseRecipe.model_validate({"dtype": dense(self.checkpoint.dtype, "float32")})


def open_models(job: Job, base: Path) -> list[OpenModel]:
    """A Hub that cannot be reached costs its rows only. Errors: BadInput for a model that is not there or
    cannot be used."""
    found: list[OpenModel] = []
    for spec in job.models:
        local = resolve_path(spec.source, base)
        if local and spec.revision:
            raise BadInput(f"model {spec.source}: is a local folder, which has no revision; remove revision:")
        name = spec.name or _plain(spec.source if local else spec.source.split("@")[0], local)
        plain = OpenModel(spec, name, str(local) if local else spec.id, None)
        try:
            checkpoint = open_checkpoint(plain.id, trust_remote_code=spec.trust_remote_code)
            plain = replace(plain, id=_pinned(plain.id, checkpoint.revision), checkpoint=checkpoint)
        except (BadInput, Unsupported):
            raise
        except QuantwrightError as error:
            plain = replace(plain, problem=str(error))
        variants = [_adapted(plain, text, base) for text in spec.adapters] or [plain]
        for variant in variants:
            taken = {other.name for other in found}
            unique, number = variant.name, 2
            while unique in taken:
                unique, number = f"{variant.name}-{number}", number + 1
            found.append(replace(variant, name=unique))
    return found


def _pinned(model: str, revision: str | None) -> str:
    """A branch may move while a job runs: every step of it opens the commit that was planned."""
    return f"{model.partition('@')[0]}@{revision}" if revision and COMMIT.fullmatch(revision) else model


def _adapted(model: OpenModel, text: str, base: Path) -> OpenModel:
    """Errors: BadInput, Unsupported where the folder holds no LoRA of this model."""
    folder = resolve_path(text, base)
    if folder is None:
        raise BadInput(f"adapter {base / text}: no such folder; give the folder of a PEFT LoRA")
    if model.checkpoint is not None:
        open_adapter(folder, model.checkpoint)
    return replace(model, name=f"{model.name}-{_plain(text, folder)}", adapter=folder)


def _plain(typed: str, local: Path | None) -> str:
    """The last part of what was typed, as the name of a model: one part of a path, and of the id of a step
    (``kind:model:recipe``)."""
    name = Path(typed).name
    if name in ("", "..") and local:
        name = local.name
    return re.sub(r"[:/\\\x00-\x1f\x7f]", "-", name).lstrip(".") or "model"
