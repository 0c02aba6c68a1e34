"""Importance matrices: both of llama.cpp's formats, what is damaged in them, and recipes that name one."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType

from quantize.errors import BadInput
from quantize.gguf.container.writer import Kvs, Planned, write_gguf
from quantize.gguf.importance.file import (
    CHUNK_COUNT,
    CHUNK_SIZE,
    DATASETS,
    Entry,
    ImportanceMatrix,
    read_imatrix,
    write_imatrix,
)
from quantize.gguf.importance.use import importances
from quantize.kernels.block_types import Type
from quantize.methods.gguf_recipe import GgufRecipe
from quantize.methods.registry import parse_recipe

DENSE, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight"


def matrix() -> ImportanceMatrix:
    random = np.random.default_rng(0)
    return ImportanceMatrix(
        {
            EXPERTS: Entry(
                random.random((3, 64), np.float32) * np.array([[40], [0], [24]], np.float32),
                np.array([40, 0, 24]),
            ),
            DENSE: Entry(random.random((1, 32), np.float32) * 64, np.array([64])),
        },
        ("wiki.train.raw", "naïve.txt"),
        2,
        32,
    )


def test_gguf_format_round_trips(tmp_path: Path) -> None:
    path, made = tmp_path / "imatrix.gguf", matrix()
    write_imatrix(path, made)
    assert [p.name for p in tmp_path.iterdir()] == ["imatrix.gguf"]
    read = read_imatrix(path)
    assert (read.datasets, read.chunk_count, read.chunk_size) == (made.datasets, 2, 32)
    assert list(read.entries) == [DENSE, EXPERTS]
    for name, entry in read.entries.items():
        assert np.array_equal(entry.sums, made.entries[name].sums)
        assert np.array_equal(entry.counts, made.entries[name].counts)
    means = read.entries[EXPERTS].means()
    assert means.dtype == np.float32
    assert np.array_equal(means[0], made.entries[EXPERTS].sums[0] / np.float32(40))
    assert (means[1] == 1).all(), "an expert that nothing reached"


def test_gguf_format_as_llama_imatrix_writes_it(tmp_path: Path) -> None:
    """Order, names and shapes as in tools/imatrix/imatrix.cpp, by gguf-py's reader. ggml's shapes have
    columns first."""
    write_imatrix(tmp_path / "imatrix.gguf", matrix())
    reader = GGUFReader(tmp_path / "imatrix.gguf")
    assert [key for key in reader.fields if not key.startswith("GGUF.")] == [
        "general.type",
        DATASETS,
        CHUNK_COUNT,
        CHUNK_SIZE,
    ]
    assert reader.fields["general.type"].contents() == "imatrix"
    assert [(t.name, t.shape.tolist(), t.tensor_type.name) for t in reader.tensors] == [
        (f"{DENSE}.in_sum2", [32], "F32"),
        (f"{DENSE}.counts", [1], "F32"),
        (f"{EXPERTS}.in_sum2", [64, 3], "F32"),
        (f"{EXPERTS}.counts", [1, 3], "F32"),
    ]


def old_format(entries: dict[str, tuple[int, np.ndarray]], tail: bytes = b"") -> bytes:
    out = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        out += (
            struct.pack("<i", len(name))
            + name.encode()
            + struct.pack("<ii", calls, values.size)
            + values.astype("<f4").tobytes()
        )
    return out + tail


def test_old_format(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(96, np.float32)
    path = tmp_path / "imatrix.dat"
    path.write_bytes(
        old_format({DENSE: (7, values[:32]), EXPERTS: (0, values)}, struct.pack("<ii", 7, 4) + b"wiki")
    )
    read = read_imatrix(path)
    assert (read.datasets, read.chunk_count) == (("wiki",), 7)
    assert np.array_equal(read.entries[DENSE].means()[0], values[:32] / np.float32(7))
    assert np.array_equal(read.entries[EXPERTS].means()[0], values), "no calls: means already"
    path.write_bytes(old_format({DENSE: (7, values)}))
    assert (read_imatrix(path).datasets, read_imatrix(path).chunk_count) == ((), 0)


@pytest.mark.parametrize("name", ["imatrix.gguf", "imatrix.dat"])
def test_truncated_anywhere(tmp_path: Path, name: str) -> None:
    whole = tmp_path / name
    if name.endswith("gguf"):
        write_imatrix(whole, matrix())
    else:
        whole.write_bytes(
            old_format(
                {DENSE: (7, np.ones(32)), EXPERTS: (7, np.ones(96))}, struct.pack("<ii", 7, 4) + b"wiki"
            )
        )
    data, cut = whole.read_bytes(), tmp_path / "cut"
    for length in (*range(0, len(data) - 64, 3), *range(len(data) - 64, len(data) - 1)):
        # What follows the entries of the old format may be absent, which one length looks like; padding may
        # be missing too.
        cut.write_bytes(data[:length])
        try:
            entries = len(read_imatrix(cut).entries)
        except BadInput as error:
            refused = str(error)
        else:
            refused = ""
            assert entries == 2
        assert refused.startswith(str(cut)) if refused else length >= len(data) - 32


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no importance matrix"),
        (b"PK\x03\x04 a zip file of some kind", "no importance matrix"),
        (struct.pack("<iI", 1, 0xFFFFFFFF), "no importance matrix"),
        (struct.pack("<ii", 1, 1 << 30), "no importance matrix"),
        (struct.pack("<ii", 1, 3) + b"abc" + struct.pack("<ii", 1, 1 << 30), "no importance matrix"),
        (old_format({"a": (1, np.array([1, np.nan]))}), "holds NaN or Inf"),
        (old_format({"a": (1, np.array([1, -1]))}), "negative"),
    ],
)
def test_damaged_old_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=message):
        read_imatrix(path)


GOOD: Kvs = {
    DATASETS: (["a"], GGUFValueType.ARRAY),
    CHUNK_COUNT: (1, GGUFValueType.UINT32),
    CHUNK_SIZE: (1, GGUFValueType.UINT32),
}


@pytest.mark.parametrize(
    ("kvs", "tensors", "message"),
    [
        (GOOD, {}, "without .in_sum2 tensors, not an importance matrix"),
        ({}, {"a.in_sum2": [1], "a.counts": [1]}, "imatrix.datasets is missing"),
        (
            {**GOOD, CHUNK_COUNT: ("many", GGUFValueType.STRING)},
            {"a.in_sum2": [1], "a.counts": [1]},
            "not of type UINT32",
        ),
        (GOOD, {"a.in_sum2": [1, 2]}, r"a\.counts is missing"),
        (GOOD, {"a.counts": [1, 2]}, r"a\.in_sum2 is missing"),
        (GOOD, {"a.in_sum2": [1, 2, 3], "a.counts": [1, 2]}, "3 sums do not match 2 counts"),
        (GOOD, {"a.in_sum2": [1, -2], "a.counts": [1]}, "negative"),
        (GOOD, {"a.in_sum2": [1, 2], "a.counts": [-1]}, "negative"),
    ],
)
def test_damaged_gguf_files(tmp_path: Path, kvs: Kvs, tensors: dict[str, list[float]], message: str) -> None:
    path = tmp_path / "imatrix.gguf"
    arrays = {name: np.array([values], np.float32) for name, values in tensors.items()}
    planned = [Planned(n, a.shape[1:], Type.F32, lambda a=a: a, lambda: None) for n, a in arrays.items()]  # type: ignore[misc]
    write_gguf(path, kvs, planned, threads=1)
    with pytest.raises(BadInput, match=message):
        read_imatrix(path)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, matrix())
    data = path.read_bytes()
    at = data.rfind(np.float32(matrix().entries[DENSE].sums[0, 5]).tobytes())
    path.write_bytes(data[:at] + np.float32(np.inf).tobytes() + data[at + 4 :])
    with pytest.raises(BadInput, match=rf"{DENSE}: holds NaN or Inf"):
        read_imatrix(path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such importance matrix"):
        read_imatrix(tmp_path / "absent.gguf")
    with pytest.raises(BadInput, match="is a folder"):
        read_imatrix(tmp_path)
    with pytest.raises(BadInput, match="no such file; `quantwright imatrix` makes one"):
        parse_recipe(f"gguf-q4_k_m:imatrix={tmp_path / 'absent.gguf'}")


def test_a_recipe_is_its_matrix_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, elsewhere, other = tmp_path / "a.gguf", tmp_path / "folder" / "b.gguf", tmp_path / "other.gguf"
    elsewhere.parent.mkdir()
    write_imatrix(first, matrix())
    shutil.copy(first, elsewhere)
    write_imatrix(other, ImportanceMatrix(matrix().entries, (), 1, 32))
    recipe = parse_recipe(f"gguf-q4_k_m:imatrix={first}")
    assert recipe.digest == parse_recipe(f"gguf-q4_k_m:imatrix={elsewhere}").digest
    assert (
        len(
            {
                recipe.digest,
                parse_recipe(f"gguf-q4_k_m:imatrix={other}").digest,
                parse_recipe("gguf-q4_k_m").digest,
            }
        )
        == 3
    )
    assert recipe.slug != parse_recipe(f"gguf-q4_k_m:imatrix={other}").slug
    assert recipe.files == (first,)
    assert str(tmp_path) not in str(recipe.canonical)
    assert parse_recipe(recipe.canonical).digest == recipe.digest, (
        "as it is read from a manifest, in any folder"
    )
    monkeypatch.chdir(tmp_path)
    assert recipe.short == "gguf-q4_k_m:imatrix=a.gguf"
    assert parse_recipe(recipe.short).digest == recipe.digest
    assert isinstance(recipe, GgufRecipe)
    write_imatrix(first, ImportanceMatrix(matrix().entries, (), 1, 32))
    with pytest.raises(BadInput, match="is another importance matrix than the recipe names"):
        recipe.importance()


def test_an_importance_of_zero_among_others_stays() -> None:
    from quantize.gguf.mixture import Choice, Spec
    from quantize.kernels.block_types import FILE_TYPES

    sums = np.ones((1, 64), np.float32)
    sums[0, 3:9] = 0
    name = "blk.0.attn_q.weight"
    matrix = ImportanceMatrix({name: Entry(sums, np.array([1]))}, (), 1, 32)
    given = importances(
        matrix,
        [Spec(name, (4, 64), Type.F32)],
        {name: Choice(Type.Q4_0, Type.Q4_0)},
        FILE_TYPES["q4_0"],
        "m.dat",
    )
    assert np.array_equal(given.rows[name], sums)
    assert given.notes == []
