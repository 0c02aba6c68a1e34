"""Token ids in llama.cpp against the source tokenizer's own, for files made here and by llama.cpp's
converter.

    python benchmarks/peers/gguf_tokenizers.py TOKENIZERS... --text FILE...
        [--converter convert_hf_to_gguf.py] [--megabytes 10]

TOKENIZERS are folders with tokenizer.json or a SentencePiece model. Each becomes a vocabulary-only GGUF, once
by this program and once by llama.cpp's ``convert_hf_to_gguf.py --vocab-only`` (beside a config.json of a
one-layer Llama), is loaded in llama.cpp, and tokenizes the paragraphs of the texts (split at empty lines) and
the awkward texts of ``verify``. The reference is the file itself, read by the tokenizers library or by
SentencePiece. Prints the table of docs/gguf-tokenizers.md, then every paragraph on which our file differs
with the cause.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from quantize.checkpoint.checkpoint import TOKENIZER_FILES, Checkpoint
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.gguf.tokenizer.metadata import TokenizerReport, tokenizer_metadata, verify_tokenizer


class Vocabulary:
    """llama.cpp's tokenizer of a GGUF file."""

    def __init__(self, path: Path):
        from quantize.kernels.llamacpp import last_error, library

        self._lib = library()
        parameters = self._lib.llama_model_default_params()
        parameters.vocab_only = True
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise RuntimeError(last_error())
        self._vocab = self._lib.llama_model_get_vocab(self._model)

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        ids = (self._lib.llama_token * (len(data) + 16))()
        return list(ids[: self._lib.llama_tokenize(self._vocab, data, len(data), ids, len(ids), True, True)])

    def close(self) -> None:
        self._lib.llama_model_free(self._model)


@dataclass
class Row:
    name: str
    model: str = ""
    pre: str = ""
    paragraphs: str = ""
    awkward: str = ""


def paragraphs(files: list[Path], limit: int) -> Iterator[str]:
    """Paragraphs (of .jsonl and .csv: lines) of the files in turn, up to ``limit`` bytes, shared out
    equally."""
    left = limit
    for number, path in enumerate(sorted(files, key=lambda p: p.stat().st_size)):
        share, used = left // (len(files) - number), 0
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            text = file.read(2 * share).decode("utf-8", errors="ignore")
        for paragraph in text.split("\n" if path.suffix in (".jsonl", ".csv") else "\n\n"):
            if paragraph.strip() and used + len(paragraph.encode()) <= share:
                used += len(paragraph.encode())
                yield paragraph
        left -= used


def write_vocabulary(path: Path, kvs: dict[str, tuple[Any, gguf.GGUFValueType]]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key in (
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
    ):
        writer.add_uint32(f"llama.{key}", 32)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, (value, kind) in kvs.items():
        writer.add_array(key, value) if kind is gguf.GGUFValueType.ARRAY else writer.add_key_value(
            key, value, kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def source_folder(folder: Path, into: Path) -> tuple[Path, SourceTokenizer]:
    """The tokenizer's files beside the config of a one-layer Llama, which llama.cpp's converter wants to
    see."""
    into.mkdir()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copy(folder / name, into / name)
    source = SourceTokenizer.open(into)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": source.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip
    (into / "config.json").write_text(json.dumps(config))
    return into, source


def compare(
    checkpoint: Checkpoint, path: Path, texts: list[str], name: str
) -> tuple[Row, TokenizerReport | None]:
    try:
        vocabulary = Vocabulary(path)
    except RuntimeError as error:
        return Row(name, paragraphs=f"does not load: {error}"), None
    fields = gguf.GGUFReader(path).fields
    text = {
        key: str(bytes(field.parts[-1]), "utf-8")
        for key, field in fields.items()
        if field.types == [gguf.GGUFValueType.STRING]
    }
    report = verify_tokenizer(checkpoint, vocabulary.tokenize, texts=texts)
    awkward = verify_tokenizer(checkpoint, vocabulary.tokenize)
    vocabulary.close()
    row = Row(
        name,
        text.get("tokenizer.ggml.model", ""),
        text.get("tokenizer.ggml.pre", ""),
        f"{len(report.mismatches)} of {report.compared}",
        f"{len(awkward.mismatches)} of {awkward.compared}",
    )
    return row, report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizers", nargs="+", type=Path)
    parser.add_argument("--text", nargs="+", type=Path, required=True)
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--megabytes", type=float, default=10)
    options = parser.parse_args()
    texts = list(paragraphs(options.text, int(options.megabytes * 1e6)))
    print(f"{len(texts)} paragraphs, {sum(len(text.encode()) for text in texts)} bytes\n")
    print("| tokenizer | made by | model | pre | paragraphs that differ | awkward texts that differ |")
    print("|---|---|---|---|---|---|", flush=True)
    listed: list[str] = []
    for folder in options.tokenizers:
        with tempfile.TemporaryDirectory() as scratch:
            made, source = source_folder(folder, Path(scratch) / folder.name)
            checkpoint = Checkpoint(
                made, str(folder), None, json.loads((made / "config.json").read_text()), {}
            )
            ours = Path(scratch) / "ours.gguf"
            write_vocabulary(ours, tokenizer_metadata(checkpoint).kvs)
            results = [compare(checkpoint, ours, texts, "quantwright")]
            if options.converter:
                theirs = Path(scratch) / "theirs.gguf"
                command = [
                    sys.executable,
                    str(options.converter),
                    str(made),
                    "--vocab-only",
                    "--outfile",
                    str(theirs),
                ]
                done = subprocess.run(command, capture_output=True, text=True)
                if theirs.is_file() and done.returncode == 0:
                    results.append(compare(checkpoint, theirs, texts, "llama.cpp's converter"))
                else:
                    reason = (done.stderr.strip().splitlines() or ["?"])[-1]
                    results.append((Row("llama.cpp's converter", paragraphs=f"refused: {reason[:80]}"), None))
            for row, _ in results:
                print(
                    f"| {folder.name} | {row.name} | {row.model} | {row.pre} | {row.paragraphs} | "
                    f"{row.awkward} |",
                    flush=True,
                )
            report = results[0][1]
            assert report is not None
            for mismatch in report.mismatches:
                pairs = list(zip(mismatch.source_ids, mismatch.llamacpp_ids, strict=False))
                at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
                shown = [source.piece(number) for number in mismatch.source_ids[at : at + 3]]
                got = [source.piece(number) for number in mismatch.llamacpp_ids[at : at + 3]]
                listed.append(
                    f"- {folder.name}: {mismatch.text[:60]!r}...: {shown} in the source, {got}: "
                    f"{mismatch.cause}"
                )
    print("\n" + "\n".join(listed or ["No paragraph differs."]))


if __name__ == "__main__":
    main()
