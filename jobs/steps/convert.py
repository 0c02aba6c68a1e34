"""The step that makes an artifact."""

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from jobs.cache import SharedCache
from jobs.cache_bucket import BucketCache
from jobs.costs import Experience, StepCost
from jobs.machine import run_arguments, run_inputs
from jobs.memory import conversion_memory
from jobs.models import OpenModel
from jobs.rows import Row, artifact_subject, write_row, write_subject
from jobs.sharing import ArtifactShare
from jobs.spec import Job
from jobs.steps.step import ModelStep, Step
from jobs.texts import Texts
from quantize.artifact.artifact import Artifact
from quantize.calibration.samples import VERSION as SAMPLING
from quantize.calibration.sources import AUTO, OWN, parse_sources, spell_sources
from quantize.checkpoint.reader import IN_FILES
from quantize.file_hashes import user_hashes
from quantize.methods.base import Costs, Work
from quantize.methods.beside import spell_beside
from quantize.methods.gguf import IMATRIX_COSTS
from quantize.methods.registry import require
from quantize.recipe import Recipe
from quantize.staging import sweep_output

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, eq=False, kw_only=True)
class ConvertStep(ModelStep):
    """``calibration``: the text that it is told to calibrate with, where its recipe does; ``output_bytes``:
    of the artifact's files, where that is known before; ``chosen``: what the recipe leaves open;
    ``same_tensors``: ``Work.reading``."""

    kind: ClassVar[str] = "convert"

    recipe: Recipe
    calibration: str = ""
    output_bytes: int | None = None
    chosen: str = ""
    same_tensors: Hashable | None = None

    @property
    def reading(self) -> Hashable | None:
        """Of those that differ in the recipe alone."""
        if self.same_tensors is None:
            return None
        alike = {**self.inputs, "recipe": ""}
        return self.model.id, self.model.adapter, self.same_tensors, json.dumps(alike, sort_keys=True)

    def beside(self, run: Path, others: Sequence[Step]) -> list[str]:
        wanted = [(other.recipe, other.output) for other in others if isinstance(other, ConvertStep)]
        force = any((run / output).exists() for _, output in wanted)
        return ["--beside", spell_beside(wanted), *(["--force"] if force else [])]

    def command(self, run: Path, stage: Path) -> list[str]:
        return [*self.arguments, *(["--force"] if (run / self.output).exists() else [])]

    def _digest(self, run: Path) -> str:
        artifact = Artifact.load(run / self.output)
        artifact.check_files(user_hashes().sha256)
        return artifact.digest

    def adopt(self, run: Path) -> str | None:
        """The row of an artifact lies beside it: it is the runner's to write."""
        digest = self.digest(run)
        if digest is not None:
            write_subject(run, "convert", artifact_subject(run, self.name))
        return digest

    def took(self, run: Path, seconds: float, peak_bytes: int) -> None:
        subject = artifact_subject(run, self.name)
        write_subject(run, "convert", replace(subject, made_s=seconds, made_peak_bytes=peak_bytes))

    def size_bytes(self, run: Path) -> int:
        return Artifact.load(run / self.output).size_bytes

    def fail(self, run: Path, reason: str) -> None:
        write_row(run, Row(self.name, self.model.label, self.recipe.short, "failed", reason))

    def sweep(self, run: Path) -> None:
        sweep_output(run / self.output)

    def cost(self, job: Job, experience: Experience) -> StepCost:
        checkpoint, weights, costs = self.checkpoint, self.checkpoint.parameters, self.costs
        # What conversions without verification took says nothing of those with it.
        # Neither does a method that calibrates for some of its recipes only.
        rate_kind = f"convert:{self.method}" + (":imatrix" if self._importances else "")
        engine = getattr(self.recipe, "engine", "native")
        rate_kind += "" if engine == "native" else f":{engine}"
        rate_kind += "" if job.verify == "full" else f":{job.verify}"
        work = weights / 1e6
        memory = experience.peak_bytes(rate_kind, work)
        # Verification spills the weights it has read back as float32; some engines save what
        # is then written again.
        spilled = 4 * weights if job.verify == "full" else 0
        saved = self.output_bytes or 0 if costs.saves_twice else 0
        lazy = self.model.adapter is not None or checkpoint.reader is not IN_FILES
        stored = sum(info.size_bytes for info in checkpoint.tensors.values())
        written = stored if lazy and costs.reads_files else 0
        return StepCost(
            self.id,
            self.kind,
            self.output_bytes,
            0,
            memory or conversion_memory(checkpoint, costs, job.verify),
            experience.time(rate_kind, work, (costs.start_s, costs.seconds)),
            work,
            rate_kind,
            written + max(spilled, saved),
        )

    @property
    def _importances(self) -> bool:
        return self.method == "gguf" and bool(self.calibration)

    @property
    def costs(self) -> Costs:
        return IMATRIX_COSTS if self._importances else super().costs

    def share(self, cache: SharedCache | BucketCache, run: Path) -> ArtifactShare:
        return ArtifactShare(cache, run / self.output, self.model.label, self.calibration)


def convert_step(job: Job, model: OpenModel, work: Work[Any], texts: Texts) -> ConvertStep:
    recipe: Recipe = work.recipe
    name = model.artifact_name(recipe)
    calibration = texts.calibration(model.spec.calibration or job.calibration)
    arguments = ["convert", model.id, *recipe.arguments, "-o", name, "--verify", job.verify]
    arguments += ["--allow-lower-verification"] if job.allow_lower_verification else []
    inputs: dict[str, Any] = {"recipe": recipe.digest, "verify": job.verify, **run_inputs(job)}
    if work.engine:
        inputs["engine"] = work.engine
    files = recipe.files
    if recipe.calibrated:
        arguments += ["--calibration", calibration.source, "--calibration-tokens", str(calibration.tokens)]
        arguments += [
            "--calibration-length",
            str(calibration.sequence_length),
            "--seed",
            str(calibration.seed),
        ]
        inputs["calibration"] = calibration.model_dump(exclude={"source"})
        parts = parse_sources(calibration.source)
        files = (*files, *(path for part in parts for path in part.files()))
        if len(parts) > 1 or not parts[0].path():
            named = [part if part.path() is None else replace(part, place="") for part in parts]
            inputs["calibration_source"] = spell_sources(tuple(named))
        if any(part.place in (OWN, AUTO) for part in parts):
            inputs["samples"] = SAMPLING
    if model.adapter:
        arguments += ["--adapter", str(model.adapter)]
        inputs["adapter"] = model.adapter.name
        files += tuple(model.adapter / name for name in ADAPTER_FILES)
    method = require(recipe)
    computes = method.engine.needs and method.format.runtime != "llamacpp"
    loads = ("torch", "transformers") if computes or recipe.calibrated else ()
    return ConvertStep(
        arguments=(*arguments, *run_arguments(job, model), "--json"),
        output=Path(name),
        name=name,
        model=model,
        recipe=recipe,
        output_bytes=work.output_bytes,
        chosen=work.chosen,
        same_tensors=work.reading,
        calibration=calibration.source if recipe.calibrated else "",
        inputs=inputs,
        files=files,
        sources=model.sources,
        packages=("quantwright", "numpy", *loads, *[distribution for distribution, _ in method.engine.needs]),
    )
