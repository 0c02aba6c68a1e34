"""Newer families under published vocabularies: a small model of random weights goes to GGUF and back."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from family_cases import CASES, make

from quantize import convert
from quantize.checkpoint.tokenizer import SourceTokenizer, token_text
from quantize.gguf.families.plan import plan
from quantize.recipe import RunOptions
from quantize.runtimes.opening import open_runtime
from quantize.sources.opening import open_checkpoint

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs
RUN = RunOptions(device="cpu", threads=1, progress=False)
LENGTH = 64


@pytest.mark.long
@pytest.mark.parametrize(
    ("tokenizer", "name", "vocabulary"),
    [
        ("qwen3", "Qwen3-Next", 151_936), ("deepseek_v3", "DeepSeek-V3", 129_280),
        ("gemma3", "Gemma 3", 262_208), ("gpt_oss", "gpt-oss", 201_088),
    ],
)  # fmt: skip
def test_there_and_back(tokenizer: str, name: str, vocabulary: int, shared: Path, tmp_path: Path) -> None:
    """``vocabulary``: rows of the published embedding, more than the tokenizer has tokens. A text of many
    kinds has the same ids in llama.cpp, and from the files that come back; logits on them are
    transformers'."""
    published = shared / "tokenizers" / tokenizer
    if not published.is_dir():
        pytest.skip(f"{tokenizer}'s vocabulary (../shared/tokenizers) is absent")
    source = SourceTokenizer.open(published)
    case = next(case for case in CASES if case.name == name)
    end = source.id_of(token_text(source.config["eos_token"]) or "")
    settings = {**case.settings, "vocab_size": vocabulary, "bos_token_id": source.bos_id, "eos_token_id": end}
    model, folder = make(replace(case, settings=settings), tmp_path / "hf")
    for file in published.iterdir():
        shutil.copyfile(file, folder / file.name)
    artifact = convert(folder, "gguf-f32", tmp_path / "gguf", verify="none", run=RUN)

    with open(shared / "data" / "wikitext2" / "wiki.test.raw", encoding="utf-8") as file:
        text = file.read(30_000) + "\n\n  naïve 中文字符 Привет 😀👍🏽 def f(x):\n\treturn 12345 # it's\r\n"
    ids = source.encode(text)
    with open_runtime(artifact.folder, RUN, exact=True, context=LENGTH) as runtime:
        assert runtime.tokenize(text) == ids
        assert runtime.vocabulary == vocabulary
        rows, got = np.array(ids[: 2 * LENGTH]).reshape(2, LENGTH), {}
        runtime.logits(rows, 0, lambda row, first, logits: got.update({(row, first): logits.copy()}))
    with torch.no_grad():
        expected = model(torch.from_numpy(rows)).logits.float().numpy()
    for (row, first), logits in got.items():
        off = np.abs(logits - expected[row, first : first + len(logits)]).max() / expected.std()
        assert off < 2 * case.tolerance  # 64 tokens, where the families' own test has 48

    back = open_checkpoint(next(artifact.folder.glob("*.gguf")))
    assert SourceTokenizer.open(back.folder).encode(text) == ids
    before = open_checkpoint(folder)
    moved = {name for mapped in plan(before).tensors if mapped.pure for name in mapped.sources}
    assert set(back.tensors) == set(before.tensors)
    for each in moved:
        assert np.array_equal(back.read_float32(each), before.read_float32(each)), each
