"""``general.*`` metadata, and how values are laid down in the header."""

import base64
import json
import shutil
from pathlib import Path

from gguf import GGUFValueType

from quantize.gguf.container.reader import read_gguf
from quantize.gguf.container.writer import write_gguf
from quantize.gguf.tokenizer.metadata import tokenizer_metadata
from quantize.gguf.tokenizer.sentencepiece_model import read_spec
from quantize.methods.gguf import Gguf
from quantize.methods.gguf_recipe import GgufRecipe
from quantize.sources.opening import open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_snapshot_folder_is_called_by_its_id(demo_checkpoint: Path, tmp_path: Path) -> None:
    """The Hub's cache calls a folder by its commit; another machine's path to it must give the same file
    too."""
    names = set()
    for parent in ("models--org--tiny-model/snapshots", "elsewhere/models--org--tiny-model/snapshots"):
        folder = tmp_path / parent / COMMIT
        shutil.copytree(demo_checkpoint, folder)
        contents = Gguf().plan(open_checkpoint(folder), GgufRecipe(type="q8_0")).contents()
        names.add((contents.name, contents.kvs["general.name"][0]))
    assert names == {("Tiny-Model-4.2M-Q8_0.gguf", "Tiny Model")}


def test_the_character_map_is_bytes_in_the_file(demo_checkpoint: Path, tmp_path: Path) -> None:
    """llama.cpp takes tokenizer.ggml.precompiled_charsmap as an array of (u)int8 only."""
    from sentencepiece import SentencePieceNormalizer

    (tmp_path / "spiece.model").write_bytes(
        SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto()
    )
    charsmap = read_spec(tmp_path / "spiece.model").charsmap
    (tmp_path / "spiece.model").unlink()
    shutil.copy(demo_checkpoint / "config.json", tmp_path)
    shutil.copy(demo_checkpoint / "model.safetensors", tmp_path)
    pieces = [["<unk>", 0.0], *[[f"p{i}", -float(i)] for i in range(4095)]]
    definition = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    kvs = tokenizer_metadata(open_checkpoint(tmp_path)).kvs
    write_gguf(tmp_path / "tokenizer.gguf", kvs, [], threads=1)
    read = read_gguf(tmp_path / "tokenizer.gguf")
    key = "tokenizer.ggml.precompiled_charsmap"
    assert read.kv_types[key] == (GGUFValueType.ARRAY, GGUFValueType.UINT8)
    assert bytes(read.kvs[key]) == kvs[key][0]
    assert len(read.kvs[key]) > 1000
