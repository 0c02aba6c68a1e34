"""A model on the Hub without its weights: its small files, and of its weights the headers only, by range
requests.

The weights' files get their size and their headers and are holes otherwise, so that whoever reads headers
reads these as any others.
"""

import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

from quantize.checkpoint.safetensors_header import MAX_HEADER_BYTES
from quantize.checkpoint.weight_files import weight_files
from quantize.disk_errors import disk_errors
from quantize.errors import StepFailed
from quantize.files import plain_name, read_json
from quantize.gguf.container.files import SUFFIX
from quantize.sources.gguf_repository import NAME, HubGguf, find, is_gguf_name
from quantize.sources.hub import INNER, WANTED
from quantize.sources.hub_errors import hub_errors
from quantize.staging import held_until_exit

#: of one small file: Gemma's tokenizer.json has 33 MB
MAX_SMALL_BYTES = 128 << 20
MAX_SMALL_FILES = 200
#: what is asked for at once: most headers of safetensors end in it; of a GGUF it doubles
FIRST_BYTES, MOST_BYTES = 100_000, 16 << 20
TRIES = 4
SMALL_BESIDE = ("quanto_qmap.json", "manifest.json")


class HubHeaders:
    """``folder``: a copy whose weights are holes; ``gguf``: the (first) file, where that was asked for;
    ``commit``: the one that all of it is of; ``sizes``: of every file of the repository."""

    def __init__(self, model: str, scratch: Path | None = None):
        """``model``: ``org/name[@revision]``, or ``org/name[@revision]:Q4_K_M`` and nothing on disk.

        Errors: BadInput where it names nothing on the Hub; StepFailed where the Hub cannot be reached.
        """
        self.gguf: Path | None = None
        named: HubGguf | None = None
        if is_gguf_name(model):
            named = find(model)
            match = NAME.fullmatch(model)
            assert match is not None
            self.repository, revision = match[1], named.commit
        else:
            self.repository, _, revision = model.partition("@")
        self.commit, self.sizes = self._listing(revision or None)
        self.folder = held_until_exit("inspect", scratch)
        self._there: dict[Path, int] = {}
        holes = [name for name in self.sizes if name.endswith((".safetensors", SUFFIX))]
        if named is not None:
            holes = list(named.files)
            self.gguf = self.folder / holes[0]
        self._small(skip=named is not None)
        with disk_errors(self.folder):
            for name in holes:
                self._hole(name)

    def fetch(self, path: Path, end: int) -> int:
        """See that the bytes of ``path`` up to ``end`` are there; returns up to where they are. Errors:
        StepFailed."""
        there, size = self._there.get(path, 0), path.stat().st_size
        if there >= end:
            return there
        # a header is read from front to end: each time as much again as is there
        upto = min(size, max(end, there + min(MOST_BYTES, max(FIRST_BYTES, there))))
        name = path.relative_to(self.folder).as_posix()
        with disk_errors(path), open(path, "r+b") as file:
            file.seek(there)
            file.write(self._range(name, there, upto))
        self._there[path] = upto
        return upto

    def fetch_headers(self) -> None:
        """Of the safetensors that transformers would load. Errors: BadInput where there are none, StepFailed
        where the Hub cannot be reached."""
        config = self.folder / "config.json"
        named = read_json(config).get("transformers_weights") if config.is_file() else None
        found = weight_files(self.folder, named if isinstance(named, str) else None)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self._header, found.files))

    def _header(self, path: Path) -> None:
        size = path.stat().st_size
        if size < 8:
            return  # whoever reads it says so
        self.fetch(path, 8)
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
        if 8 + length <= size and length <= MAX_HEADER_BYTES:
            self.fetch(path, 8 + length)

    def _listing(self, revision: str | None) -> tuple[str, dict[str, int]]:
        from huggingface_hub import HfApi

        with hub_errors(self.repository, revision):
            info = HfApi().model_info(self.repository, revision=revision, files_metadata=True)
        named = [(entry.rfilename, int(entry.size or 0)) for entry in info.siblings or []]
        return str(info.sha), {plain_name(name, self.repository): size for name, size in named}

    def _small(self, skip: bool) -> None:
        """What is read besides the weights, through the Hub's cache."""
        from huggingface_hub import hf_hub_download

        patterns = ["README.md"] if skip else [*WANTED, *INNER, *SMALL_BESIDE]
        names = [
            name
            for name, size in sorted(self.sizes.items())
            if any(fnmatchcase(name, pattern) for pattern in patterns)
            and name.count("/") <= 1
            and size <= MAX_SMALL_BYTES
            and not name.endswith(".safetensors")
        ]
        with hub_errors(self.repository, self.commit), disk_errors(self.folder):
            for name in names[:MAX_SMALL_FILES]:
                cached = hf_hub_download(self.repository, name, revision=self.commit)
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(cached, target)

    def _hole(self, name: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.truncate(self.sizes[name])

    def _range(self, name: str, begin: int, end: int) -> bytes:
        """Errors: StepFailed where it cannot be had in several tries."""
        got = b""
        with hub_errors(self.repository, self.commit):
            for _ in range(TRIES):
                got += self._once(name, begin + len(got), end)
                if len(got) == end - begin:
                    return got
        raise StepFailed(
            f"{self.repository}: the connection broke off in {name} ({len(got)} of {end - begin} bytes); "
            "try again"
        )

    def _once(self, name: str, begin: int, end: int) -> bytes:
        """What comes of the range: fewer bytes where the connection breaks off."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        wanted = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        headers = {**build_hf_headers(library_name="quantwright"), **wanted}
        url = hf_hub_url(self.repository, name, revision=self.commit)
        got = bytearray()
        with http_stream_backoff("GET", url, headers=headers, max_retries=2, timeout=30) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:
                raise StepFailed(
                    f"{self.repository}: the Hub answers with all of {name} where a part was asked for; "
                    "fetch the model and give its folder"
                )
            try:  # what breaks off in here must not reach the context, which would begin again
                for chunk in response.iter_bytes():
                    got += chunk
                    if len(got) >= end - begin:
                        break
            except Exception as error:
                if not type(error).__module__.startswith("httpx"):
                    raise
        return bytes(got[: end - begin])
