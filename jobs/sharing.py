"""What of a job goes through the shared cache: artifacts, reference logits, token ids. Speeds belong to a
machine and do not."""

from collections.abc import Mapping
from pathlib import Path

from jobs.cache import SharedCache
from jobs.cache_bucket import BucketCache
from jobs.steps import Step
from quantize.artifact.artifact import MANIFEST, Artifact, claim_output, commit
from quantize.staging import held_folder, staging


class Sharing:
    """``run``: the run folder, absolute."""

    def __init__(self, cache: SharedCache | BucketCache, run: Path):
        self.cache, self.run = cache, run
        self._before: dict[str, set[str]] = {}

    @staticmethod
    def covers(step: Step) -> bool:
        return step.kind == "convert" or _makes_reference(step)

    def fetch(self, step: Step, key: str) -> bool:
        """Whether the step's output lies in place now. A reference's logits only spare its step the work.

        Errors: StepFailed where the run folder cannot be written; BadInput where the output's place holds
        something else.
        """
        if _makes_reference(step):
            self._fetch_reference(key)
            self._before[step.id] = set(self._references())
            return False
        out = self.run / step.output
        with staging(out) as stage:
            if not self.cache.fetch(key, stage):
                return False
            artifact = Artifact.load(stage)
            artifact.check_files()
            claim_output(out, force=True)
            commit(stage, out, _readdressed(artifact, step).manifest, force=True)
        return True

    def keep(self, step: Step, key: str) -> None:
        """Give what the step has made to the others."""
        if step.kind == "convert":
            folder = self.run / step.output
            names = [MANIFEST, *Artifact.load(folder).manifest.files]
            self.cache.store(key, {name: folder / name for name in names})
            return
        made = set(self._references()) - self._before.pop(step.id, set())
        files = [path for name in sorted(made) for path in sorted((self.run / "cache" / name).iterdir())]
        if files:
            self.cache.store(key, {str(path.relative_to(self.run / "cache")): path for path in files})

    def _references(self) -> Mapping[str, Path]:
        """Logits and token ids."""
        return {
            path.name: path
            for kind in ("reference", "tokens")
            for path in (self.run / "cache").glob(f"{kind}-*")
        }

    def _fetch_reference(self, key: str) -> None:
        try:
            (self.run / "cache").mkdir(exist_ok=True)
            with held_folder(self.run / "cache", ".reference-fetched-", mode=0o777) as stage:
                if self.cache.fetch(key, stage):
                    for folder in stage.iterdir():
                        target = stage.parent / folder.name
                        if not target.exists():
                            folder.rename(target)
        except OSError as error:  # it is made anew then
            self.cache.say(f"cache: the reference's logits cannot be copied ({error.strerror})")


def _makes_reference(step: Step) -> bool:
    return step.kind == "eval" and not step.recipe


def _readdressed(artifact: Artifact, step: Step) -> Artifact:
    """The manifest names source and calibration text where this job has them, not where their like lay for
    somebody else."""
    manifest = artifact.manifest
    changes: dict[str, object] = {"source": manifest.source.model_copy(update={"id": step.model})}
    if manifest.calibration is not None and "--calibration" in step.arguments:
        source = step.arguments[step.arguments.index("--calibration") + 1]
        changes["calibration"] = manifest.calibration.model_copy(update={"source": source})
    return Artifact(artifact.folder, manifest.model_copy(update=changes))
