"""What of a job goes through the shared cache: artifacts, reference logits, token ids. Speeds belong to a
machine and do not."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from jobs.cache import SharedCache
from jobs.cache_bucket import BucketCache
from quantize.artifact.artifact import MANIFEST, Artifact, claim_output, commit
from quantize.calibration.sources import parse_sources
from quantize.into_place import put_unless_there
from quantize.staging import held_folder, staging


class Share(ABC):
    """The way of one step's output between the run folder and the cache."""

    def __init__(self, cache: SharedCache | BucketCache):
        self.cache = cache

    @abstractmethod
    def fetch(self, key: str) -> bool:
        """Whether the output lies in place now.

        Errors: StepFailed where the run folder cannot be written; BadInput where the output's place holds
        something else.
        """

    @abstractmethod
    def keep(self, key: str) -> None:
        """Give what the step has made to the others."""


class ArtifactShare(Share):
    """``out``: where the artifact lies; ``model`` and ``calibration``: where this job has what it was made
    of."""

    def __init__(self, cache: SharedCache | BucketCache, out: Path, model: str, calibration: str):
        super().__init__(cache)
        self.out, self.model, self.calibration = out, model, calibration

    def fetch(self, key: str) -> bool:
        with staging(self.out) as stage:
            if not self.cache.fetch(key, stage):
                return False
            artifact = Artifact.load(stage)
            artifact.check_files()
            claim_output(self.out, force=True)
            commit(stage, self.out, self._readdressed(artifact).manifest, force=True)
        return True

    def keep(self, key: str) -> None:
        names = [MANIFEST, *Artifact.load(self.out).manifest.files]
        self.cache.store(key, {name: self.out / name for name in names})

    def _readdressed(self, artifact: Artifact) -> Artifact:
        """The manifest names source and calibration text where this job has them, not where their like lay
        for somebody else."""
        manifest = artifact.manifest
        changes: dict[str, object] = {"source": manifest.source.model_copy(update={"id": self.model})}
        if manifest.calibration is not None and self.calibration:
            record = manifest.calibration
            places = [part.place for part in parse_sources(self.calibration)]
            parts = [
                part.model_copy(update={"source": place})
                for part, place in zip(record.parts, places, strict=False)
            ]
            update = {"source": self.calibration, "parts": tuple(parts)}
            changes["calibration"] = record.model_copy(update=update)
        return Artifact(artifact.folder, manifest.model_copy(update=changes))


class ReferenceShare(Share):
    """Logits and token ids in ``run``/cache. They only spare the step its work: it is never in place."""

    def __init__(self, cache: SharedCache | BucketCache, run: Path):
        super().__init__(cache)
        self.folder = run / "cache"
        self._before: set[str] = set()

    def fetch(self, key: str) -> bool:
        try:
            self.folder.mkdir(exist_ok=True)
            with held_folder(self.folder, ".reference-fetched-", mode=0o777) as stage:
                if self.cache.fetch(key, stage):
                    for folder in stage.iterdir():
                        put_unless_there(folder, stage.parent / folder.name)
        except OSError as error:  # then it is made again
            self.cache.say(f"cache: the reference's logits cannot be copied ({error.strerror})")
        self._before = set(self._there())
        return False

    def keep(self, key: str) -> None:
        made = set(self._there()) - self._before
        files = [path for name in sorted(made) for path in sorted((self.folder / name).iterdir())]
        if files:
            self.cache.store(key, {str(path.relative_to(self.folder)): path for path in files})

    def _there(self) -> Mapping[str, Path]:
        return {path.name: path for kind in ("reference", "tokens") for path in self.folder.glob(f"{kind}-*")}
