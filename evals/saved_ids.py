"""Token ids on disk, beside the reference's logits: made once from a text, read by every process that
measures on it."""

import hashlib
import json
from importlib import metadata
from pathlib import Path

import numpy as np

from quantize.checkpoint.checkpoint import TOKENIZER_FILES
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.hashes import sha256_files
from quantize.into_place import put_in_place
from quantize.staging import held_folder

#: Shorter texts are tokenized faster than they are looked up.
LEAST_CHARACTERS = 50_000


class SavedIds:
    """``tokenizer.encode``, whose result for long texts is kept in ``root`` as ``tokens-<key>``: ids.i32 and
    about.json."""

    def __init__(self, tokenizer: SourceTokenizer, root: Path):
        self.tokenizer, self.root = tokenizer, root
        library = type(tokenizer.backend).__module__.partition(".")[0]
        files = sha256_files(path for name in TOKENIZER_FILES if (path := tokenizer.folder / name).is_file())
        self.made_by = {
            **{path.name: digest for path, digest in files.items()},
            library: metadata.version(library),
        }

    def __call__(self, text: str, add_special: bool = True) -> list[int]:
        if len(text) < LEAST_CHARACTERS:
            return self.tokenizer.encode(text, add_special)
        about = {**self.made_by, "text": _sha256(text.encode()), "add_special": add_special}
        folder = self.root / f"tokens-{_sha256(json.dumps(about).encode())[:16]}"
        return _read(folder, about) or self._make(folder, about, text, add_special)

    def _make(self, folder: Path, about: dict[str, object], text: str, add_special: bool) -> list[int]:
        ids = self.tokenizer.encode(text, add_special)
        data = np.asarray(ids, "<i4").tobytes()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with held_folder(self.root, ".tokens-", mode=0o777) as stage:
                (stage / "ids.i32").write_bytes(data)
                (stage / "about.json").write_text(
                    json.dumps({**about, "sha256": _sha256(data)}) + "\n", encoding="utf-8"
                )
                put_in_place(stage, folder, replace=True)
        except OSError:  # a read-only folder, or another process was faster: the ids are correct anyway
            pass
        return ids


def _read(folder: Path, about: dict[str, object]) -> list[int] | None:
    """None where there are none, or they are not what was written."""
    try:
        known, data = (
            json.loads((folder / "about.json").read_text(encoding="utf-8")),
            (folder / "ids.i32").read_bytes(),
        )
    except (OSError, ValueError):
        return None
    return np.frombuffer(data, "<i4").tolist() if known == {**about, "sha256": _sha256(data)} else None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
