"""What is said about a folder or a file, what looks wrong with it, and that hostile metadata stays text."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFWriter

from quantize.commands.inspect import inspect
from quantize.errors import BadInput
from quantize.inspection.description import Description, describe
from quantize.inspection.opening import look

UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


def edit(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | values))


def problems(found: Description) -> dict[str, str]:
    return {problem.what: problem.level for problem in found.problems}


@pytest.fixture
def folder(demo_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint that a test may spoil."""
    return Path(shutil.copytree(demo_checkpoint, tmp_path / "model"))


def write_gguf(path: Path, fill: Callable[[GGUFWriter], None] = lambda _: None) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(8)])
    fill(writer)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((32, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_embedded_checkpoint(demo_checkpoint: Path) -> None:
    found = describe(look(str(demo_checkpoint)))
    assert (found.method, found.weights, found.bits_per_weight) == ("dense BF16", 4_196_608, 16)
    assert {s.name: s.weights for s in found.parts} == {
        "embedding": 4096 * 256,
        "attention": 4 * (2 * 256 * 256 + 2 * 128 * 256),
        "mlp": 4 * 3 * 256 * 768,
        "norms": 9 * 256,
    }
    assert (found.tokenizer.kind, found.tokenizer.ids, found.context) == ("BPE", 4096, 1024)
    # 4 layers of 2 x 2 heads x 64 elements, two bytes each
    assert found.kv_bytes_per_token == 4 * 2 * 2 * 64 * 2
    assert (found.license, found.problems) == ("apache-2.0", ())


def test_a_gguf_that_nobody_can_convert_back(tmp_path: Path) -> None:
    found = describe(look(str(write_gguf(tmp_path / "a.gguf"))))
    assert {s.name: s.weights for s in found.types} == {"F32": 256, "F16": 1024}
    assert (found.kv_bytes_per_token, found.context, found.tokenizer.ids) == (2 * 16 * 2, 64, 8)
    assert problems(found) == {"no licence": "note"}


def test_no_weight_is_read(demo_checkpoint: Path, folder: Path) -> None:
    """The same from a file whose weights are a hole."""
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    with open(weights, "r+b") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
        file.truncate(header)
        file.truncate(size)
    full, hollow = describe(look(str(demo_checkpoint))), describe(look(str(folder)))
    assert hollow.tensors == full.tensors
    assert hollow.parts == full.parts


@pytest.mark.parametrize(
    ("config", "what", "level"),
    [
        ({"rope_parameters": None, "rope_scaling": {"rope_type": "spiral", "factor": 2.0}},
         "rope scaling that the runtime does not read", "wrong"),
        ({"rope_scaling": {"rope_type": "yarn", "type": "linear", "factor": 2.0}},
         "rope scaling contradicts itself", "wrong"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope scaling without a factor", "wrong"),
        ({"rope_scaling": None, "rope_theta": None,
          "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}},
         "rope in rope_parameters only", "note"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "not quantized", "wrong"),
        ({"auto_map": {"AutoConfig": "evil.Config"}}, "code of its own", "note"),
        ({"model_type": "nobody-has-this"}, "unknown architecture", "wrong"),
    ],
)  # fmt: skip
def test_what_a_config_gets_wrong(folder: Path, config: dict[str, Any], what: str, level: str) -> None:
    edit(folder, "config.json", **config)
    assert problems(describe(look(str(folder)))) == {what: level}


def test_a_tied_head_stored_twice(make_checkpoint: Callable[..., Path]) -> None:
    apart = make_checkpoint(num_hidden_layers=1)
    before = describe(look(str(apart)))
    assert "tied head stored twice" not in problems(before)
    edit(apart, "config.json", tie_word_embeddings=True)
    after = describe(look(str(apart)))
    assert problems(after)["tied head stored twice"] == "wrong"
    # it is no weight of the model then, and its bytes still count
    assert (before.weights or 0) - (after.weights or 0) == 4096 * 256
    assert after.tensor_bytes == before.tensor_bytes


def test_a_tokenizer_and_a_vocabulary_that_do_not_fit(make_checkpoint: Callable[..., Path]) -> None:
    smaller = describe(look(str(make_checkpoint(num_hidden_layers=1, vocab_size=4000))))
    assert problems(smaller)["tokenizer larger than the vocabulary"] == "wrong"
    larger = describe(look(str(make_checkpoint(num_hidden_layers=1, vocab_size=5000))))
    assert problems(larger)["vocabulary larger than the tokenizer"] == "note"
    assert any("may be another model's" in problem.why for problem in larger.problems)
    padded = describe(look(str(make_checkpoint(num_hidden_layers=1, vocab_size=4096 + 512))))
    assert "vocabulary larger than the tokenizer" in problems(padded)


def test_a_chat_model_without_a_template(tmp_path: Path) -> None:
    def turns(writer: GGUFWriter) -> None:
        writer.add_name("Small Instruct")
        writer.kv_data[0].pop("tokenizer.ggml.tokens")
        writer.add_token_list(["<|im_start|>", *"abcdefg"])

    without = write_gguf(tmp_path / "without.gguf", turns)
    assert problems(describe(look(str(without))))["no chat template"] == "wrong"

    def template(writer: GGUFWriter) -> None:
        turns(writer)
        writer.add_chat_template("{{ messages }}")

    found = describe(look(str(write_gguf(tmp_path / "with.gguf", template))))
    assert "no chat template" not in problems(found)
    assert [(t.name, t.characters) for t in found.chat_templates] == [("default", 14)]


def test_rope_scaling_that_llamacpp_does_not_read(tmp_path: Path) -> None:
    def scaled(writer: GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", "dynamic")

    found = describe(look(str(write_gguf(tmp_path / "a.gguf", scaled))))
    assert problems(found)["rope scaling that the runtime does not read"] == "wrong"


def test_hostile_metadata_of_a_gguf_stays_short_text(tmp_path: Path) -> None:
    evil = "[bold]<script>\x1b[31m\r\n\u202e" + "x" * 3_000_000

    def hostile(writer: GGUFWriter) -> None:
        writer.add_license(evil)
        writer.add_chat_template(evil)
        writer.add_string("tokenizer.chat_template." + evil[:1000], evil)
        writer.add_tokenizer_pre(evil)
        writer.add_string("llama.rope.scaling.type", evil)
        writer.add_string("quantize.imatrix.file", evil)

    _check_hostile(write_gguf(tmp_path / "a.gguf", hostile), "<script>")


def test_hostile_metadata_of_a_folder_stays_short_text(folder: Path) -> None:
    evil = "[bold]<script>\x1b[31m\r\n\u202e" + "x" * 1_000_000
    scheme = {"quant_method": evil, evil: evil, **{f"k{i}": evil[:9_000] for i in range(500)}}
    edit(folder, "config.json", model_type=evil, architectures=[evil], quantization_config=scheme)
    edit(folder, "tokenizer_config.json", tokenizer_class=evil, chat_template=evil)
    (folder / "README.md").write_text(f"---\nlicense: {json.dumps(evil[:100_000])}\n---\n")
    _check_hostile(folder, "<script>")


def _check_hostile(path: Path, sign: str) -> None:
    done = CliRunner().invoke(inspect, [str(path), "--json", "--tensors"])
    assert done.exception is None, done.exception
    text, _, document = done.stdout.rstrip("\n").rpartition("\n")
    assert not UNPRINTABLE.search(done.stdout)
    assert sign in text  # it was met, and is text
    assert max(map(len, text.split("\n"))) < 400
    assert len(document) < 20_000
    json.loads(document)


def test_what_is_no_model(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("hello")
    for what, words in (
        (note, "neither a folder nor a GGUF"),
        (tmp_path, "config.json"),
        (tmp_path / "none" / "there" / "at-all", "not a Hub id"),
    ):
        with pytest.raises(BadInput, match=words):
            look(str(what))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadInput, match="truncated"):
        look(str(tmp_path / "a.gguf"))
