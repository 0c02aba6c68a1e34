"""Files of a GGUF repository on the Hub, named as llama.cpp and Ollama name them:
``org/name[@revision]:Q4_K_M``.

A file is fetched when asked for and can be deleted again, so that all of a repository can be measured on a
disk that holds two.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from quantize.errors import BadInput
from quantize.files import typed_path
from quantize.gguf.container.files import NO_MODEL, PART
from quantize.sources.hub_errors import hub_errors

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?:([\w.*-]+)")
ALL = "*"
_LABEL = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d+\w*|TQ\d_\d|BF16|F16|FP16|F32|FP32|MXFP4\w*|NVFP4\w*))$", re.IGNORECASE
)


@dataclass
class HubGguf:
    """One quantization. ``files``: its parts in order, as the repository names them; ``commit``: the revision
    they are of."""

    repository: str
    commit: str
    label: str
    files: tuple[str, ...]
    size_bytes: int
    _new: list[Path] = field(default_factory=list, repr=False)  # blobs that were not on disk before

    @property
    def path(self) -> Path:
        """Where the first part lies once fetched: in the Hub's cache, which knows the path in advance."""
        return self._folder / "snapshots" / self.commit / self.files[0]

    @property
    def _folder(self) -> Path:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.repository, repo_type="model")

    def fetch(self) -> None:
        """Errors: StepFailed where the Hub cannot be reached, or the disk is full."""
        from huggingface_hub import hf_hub_download

        blobs = self._folder / "blobs"
        before = set(blobs.glob("*"))
        with hub_errors(self.repository, self.commit):
            for name in self.files:
                hf_hub_download(self.repository, name, revision=self.commit)
        self._new += sorted(set(blobs.glob("*")) - before)

    def delete(self) -> bool:
        """Remove what ``fetch`` brought, and nothing that was on disk before it; whether there was
        something."""
        parts = [self.path.parent / Path(name).name for name in self.files]
        for part in parts:
            if part.is_symlink() and part.resolve() in {blob.resolve() for blob in self._new}:
                part.unlink()
        for blob in self._new:
            blob.unlink(missing_ok=True)
        found, self._new = bool(self._new), []
        return found


def is_gguf_name(text: str) -> bool:
    """``org/name:WHICH`` and nothing on disk."""
    return NAME.fullmatch(text) is not None and not typed_path(text).exists()


def expand(text: str) -> list[str]:
    """``org/name:*`` -> every quantization by name, smallest first; anything else -> itself. Errors: as of
    ``find``."""
    match = NAME.fullmatch(text)
    if match is None or match[3] != ALL or not is_gguf_name(text):
        return [text]
    return [f"{text.removesuffix(ALL)}{gguf.label}" for gguf in quantizations(match[1], match[2])]


def find(text: str) -> HubGguf:
    """Errors: BadInput where the repository is not there, or no file or more than one has that name;
    StepFailed where the Hub cannot be reached."""
    match = NAME.fullmatch(text)
    assert match is not None, text
    known = quantizations(match[1], match[2])
    wanted = match[3].lower().removesuffix(".gguf")
    named = [g for g in known if g.label.lower() == wanted] or [
        g for g in known if wanted in (g.label.lower().removeprefix("ud-"), _stem(g.files[0]).lower())
    ]
    if len(named) != 1:
        labels = ", ".join(g.label for g in known)
        what = f"{len(named)} files are" if named else "no file is"
        raise BadInput(f"{text}: {what} named that in the repository; it has {labels} (or * for all of them)")
    return named[0]


@cache
def quantizations(repository: str, revision: str | None) -> tuple[HubGguf, ...]:
    """Smallest first. Errors: BadInput where the repository does not exist or has no GGUF; StepFailed where
    it cannot be reached."""
    from huggingface_hub import HfApi

    with hub_errors(repository, revision):
        try:
            info = HfApi().model_info(repository, revision=revision, files_metadata=True)
            commit, sizes = str(info.sha), {s.rfilename: int(s.size or 0) for s in info.siblings or []}
        except Exception:  # whatever the error, the cached files are enough
            cached = _cached(repository, revision)
            if cached is None:
                raise
            commit, sizes = cached
    parts: dict[str, list[str]] = defaultdict(list)
    for name in sorted(sizes):
        if name.endswith(".gguf") and not NO_MODEL.search(Path(name).name):
            parts[_stem(name)].append(name)
    if not parts:
        raise BadInput(
            f"{repository}: holds no .gguf file; give only the repository's id to open it with transformers"
        )
    labels = [_label(stem) for stem in parts]
    found = [
        HubGguf(
            repository,
            commit,
            label if labels.count(label) == 1 else stem,
            tuple(names),
            sum(sizes[n] for n in names),
        )
        for label, (stem, names) in zip(labels, parts.items(), strict=True)
    ]
    return tuple(sorted(found, key=lambda gguf: gguf.size_bytes))


def _stem(name: str) -> str:
    return PART.sub("", Path(name).name.removesuffix(".gguf"))


def _label(stem: str) -> str:
    match = _LABEL.search(stem)
    return match[1] if match else stem


def _cached(repository: str, revision: str | None) -> tuple[str, dict[str, int]] | None:
    """(commit, sizes by name) of a repository's cached files, for when the Hub cannot be reached."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    named = (
        [folder / "snapshots" / revision]
        if revision
        else sorted(folder.glob("snapshots/*"), key=lambda p: p.stat().st_mtime)
    )
    for snapshot in reversed(named):
        files = [path for path in snapshot.rglob("*.gguf") if path.is_file()]
        if files:
            return snapshot.name, {str(p.relative_to(snapshot)): p.stat().st_size for p in files}
    return None
