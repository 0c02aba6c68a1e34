"""Mixtures of experts: whatever their layout, the file is the same, experts go into it one by one, and one
that is damaged ends the conversion by its name."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mixture_folder import LAYOUTS, fused, rewrite, write_empty_mixture, write_mixture

pytest.importorskip("llama_cpp")

from quantize.conversion import convert
from quantize.errors import StepFailed
from quantize.gguf.container.writer import IN_FLIGHT_BYTES, write_gguf
from quantize.gguf.importance.file import Entry, ImportanceMatrix, write_imatrix
from quantize.methods.gguf import GgufWork
from quantize.methods.registry import parse_recipe, plan
from quantize.process import child_environment
from quantize.recipe import RunOptions
from quantize.sources.opening import open_checkpoint

EXPERTS, WIDTH, HIDDEN = 4, 512, 256
RECIPES = ("gguf-f32", "gguf-f16", "gguf-bf16", "gguf-q8_0", "gguf-q4_k_m", "gguf:type=q4_0,via=f16")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {layout: tmp_path_factory.mktemp("mixture") for layout in LAYOUTS}
    for layout, folder in folders.items():
        write_mixture(folder, layout)
    return folders


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random, entries = np.random.default_rng(2), {}
    for layer in range(2):
        for part, columns in (("gate", HIDDEN), ("up", HIDDEN), ("down", WIDTH)):
            sums = random.lognormal(0, 1, (EXPERTS, columns)).astype(np.float32)
            entries[f"blk.{layer}.ffn_{part}_exps.weight"] = Entry(sums, np.full(EXPERTS, 9))
    path = tmp_path_factory.mktemp("imatrix") / "matrix.gguf"
    write_imatrix(path, ImportanceMatrix(entries, ("text",), 3, 512))
    return path


@pytest.mark.parametrize("name", [*RECIPES, "gguf-q4_k_m with importances", "gguf-iq4_xs with importances"])
def test_experts_one_by_one_give_the_bytes_of_the_whole(
    name: str, folders: dict[str, Path], imatrix: Path, tmp_path: Path
) -> None:
    """Of both layouts, with one thread and with two."""
    short, _, weighted = name.partition(" with ")
    spelled = f"{short.replace('gguf-', 'gguf:type=')},imatrix={imatrix}" if weighted else short
    sums, one_by_one = set(), 0
    for folder in folders.values():
        work = plan(open_checkpoint(folder), parse_recipe(spelled))
        assert isinstance(work, GgufWork)
        tensors = work.contents().tensors
        one_by_one += sum(tensor.matrix is not None for tensor in tensors)
        for threads in (1, 2):
            written = write_gguf(tmp_path / "a.gguf", {}, tensors, threads=threads)
            sums.add(frozenset(written.checksums.items()))
        whole = [replace(tensor, matrix=None) for tensor in tensors]
        sums.add(frozenset(write_gguf(tmp_path / "a.gguf", {}, whole, threads=1).checksums.items()))
    assert len(sums) == 1
    assert one_by_one == 2 * 2 * 3, "gate, up and down of each layer, in each layout"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("recipe", ["gguf-q4_k_m", "gguf-f16"])
def test_a_damaged_expert_is_named_and_nothing_is_left(
    recipe: str, layout: str, threads: int, tmp_path: Path
) -> None:
    tensors = write_mixture(tmp_path / "hf", "one by one")
    damaged = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    tensors[damaged] = tensors[damaged].copy()
    tensors[damaged][5, 7] = 0x7FC0  # NaN
    where = r"5, 7"
    if layout == "in one tensor":
        tensors, damaged, where = fused(tensors, EXPERTS), "model.layers.1.mlp.experts.down_proj", r"2, 5, 7"
    rewrite(tmp_path / "hf", tensors)
    with pytest.raises(
        StepFailed, match=rf"tensor {damaged} holds 1 NaN or Inf value \(first at \[{where}\]"
    ):
        convert(str(tmp_path / "hf"), recipe, tmp_path / "made" / "out", run=RunOptions(threads=threads))
    assert not (tmp_path / "made").exists()


MEASURED = """
import sys
from pathlib import Path
from quantize.methods.registry import parse_recipe, plan
from quantize.process import peak_rss_bytes
from quantize.recipe import RunOptions
from quantize.sources.opening import open_checkpoint

def write(folder, out):
    Path(out).mkdir()
    work = plan(open_checkpoint(folder), parse_recipe(sys.argv[1]))
    work.write(Path(out), RunOptions(threads=2, progress=False), None)

write(sys.argv[2], sys.argv[3] + "-small")  # what libraries and threads take
before = peak_rss_bytes()
write(sys.argv[4], sys.argv[3])
print(peak_rss_bytes() - before)
"""


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("recipe", ["gguf-q4_0", "gguf-f16"])
def test_memory_follows_one_expert(
    recipe: str, layout: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    whole = write_empty_mixture(tmp_path / "large", layout, width=4096, experts=16, hidden=1024)
    assert whole == 128 << 20, "of one matrix of all experts; of one expert it is 8 MB"
    given = [recipe, str(folders[layout]), str(tmp_path / "out"), str(tmp_path / "large")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *given],
        env=child_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < IN_FLIGHT_BYTES + (32 << 20)
