"""The compiled block quantizers against llama.cpp's, and what is said where there are none."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from awkward_rows import IMPORTANCES, ROWS, importance_of, rows_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantize.errors import BadInput, StepFailed
from quantize.kernels import native
from quantize.kernels.block_types import Type, row_bytes
from quantize.kernels.chosen import CHOSEN, made_by, maker
from quantize.kernels.ggml import GGML
from quantize.kernels.native import VARIABLE, Library, Native

pytest.importorskip("llama_cpp")


@pytest.fixture
def quantizer(library: Library) -> Native:
    return Native(library)


def packed(quantizer: Native, kind: Type, rows: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    out = np.full((rows.shape[0], row_bytes(kind, rows.shape[1])), 0xAA, np.uint8)
    quantizer.quantize(kind, rows, out, importance)
    return out


def reference(kind: Type, rows: np.ndarray, importance: np.ndarray | None) -> np.ndarray | None:
    """llama.cpp's bytes; None where it refuses the rows."""
    out = np.empty((rows.shape[0], row_bytes(kind, rows.shape[1])), np.uint8)
    GGML.prepare(kind)
    try:
        GGML.quantize(kind, rows, out, importance)
    except StepFailed:
        return None
    return out


@pytest.mark.parametrize("kind", sorted(Native.kinds), ids=lambda kind: kind.name)
@pytest.mark.parametrize("values", ROWS)
def test_bytes_are_those_of_llamacpp(quantizer: Native, kind: Type, values: str) -> None:
    """Block for block, with 19 rows of 3 super-blocks: no multiple of any number of lanes."""
    rows = rows_of(values, (19, 768))
    for weights in IMPORTANCES:
        importance = importance_of(weights, 768)
        expected = reference(kind, rows, importance)
        if expected is None:
            with pytest.raises(StepFailed, match=f"do not fit into {kind.name}; use a type with more range"):
                packed(quantizer, kind, rows, importance)
        else:
            assert np.array_equal(packed(quantizer, kind, rows, importance), expected), weights


#: any float32 that is a number, and, so that blocks have something in common, some of few magnitudes
NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-20, 2.0**-149, 3e38]),
)


@pytest.mark.parametrize("kind", sorted(Native.kinds), ids=lambda kind: kind.name)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(
    rows=arrays(np.float32, (2, 256), elements=NUMBERS, fill=st.sampled_from([0.0, 0.25, -3.0])),
    importance=st.none() | arrays(np.float32, 256, elements=NUMBERS.map(abs), fill=st.just(1.0)),
)
def test_no_rows_are_found_that_differ(
    quantizer: Native, kind: Type, rows: np.ndarray, importance: np.ndarray | None
) -> None:
    expected = reference(kind, rows, importance)
    if expected is not None:
        assert np.array_equal(packed(quantizer, kind, rows, importance), expected)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 33])
def test_rows_do_not_depend_on_those_beside_them(quantizer: Native, count: int) -> None:
    rows, importance = rows_of("normal", (33, 256)), importance_of("lognormal", 256)
    for kind in sorted(Native.kinds):
        together = packed(quantizer, kind, rows, importance)
        assert np.array_equal(packed(quantizer, kind, rows[:count], importance), together[:count])


@pytest.mark.parametrize("kind", sorted(Native.kinds), ids=lambda kind: kind.name)
def test_values_that_half_precision_does_not_hold_are_refused(quantizer: Native, kind: Type) -> None:
    rows = rows_of("normal", (3, 256))
    rows[1, 17] = 1e9
    message = f"values up to 1e\\+09 do not fit into {kind.name}; use a type with more range"
    with pytest.raises(StepFailed, match=message):
        packed(quantizer, kind, rows, None)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The loader looks into an empty folder."""
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    monkeypatch.delenv(VARIABLE, raising=False)  # which would be its first answer
    native._load.cache_clear()
    yield tmp_path
    native._load.cache_clear()


def test_without_a_build_llamacpp_quantizes(elsewhere: Path) -> None:
    assert native.load() == "not built: install again where a C compiler is (GCC or Clang)"
    assert "llama.cpp's quantizers are used" in native.describe()
    assert made_by([Type.Q4_K]) == {"Q4_K": f"llama.cpp {GGML.version}"}
    rows = rows_of("normal", (2, 256))
    out = np.empty((2, row_bytes(Type.Q4_K, 256)), np.uint8)
    CHOSEN.quantize(Type.Q4_K, rows, out)
    assert np.array_equal(out, reference(Type.Q4_K, rows, None))


def test_a_file_that_is_no_library_is_named(elsewhere: Path) -> None:
    (elsewhere / f"_native{native.EXTENSION_SUFFIXES[0]}").write_bytes(b"not a library")
    assert str(native.load()).startswith(f"_native{native.EXTENSION_SUFFIXES[0]} cannot be loaded")


@pytest.mark.skipif(isinstance(native.load(), str), reason="no compiled kernels here")
def test_a_build_of_another_version_is_not_used(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = next(Path(maker.__code__.co_filename).parent.glob("_native*"))
    shutil.copy(built, elsewhere / built.name)
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    assert native.load() == f"{built.name} is of another version of this program: install again"


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert native.load() == "switched off by $QUANTWRIGHT_KERNELS"
    assert maker(Type.Q4_K) is GGML


def test_an_unknown_implementation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mmx")
    with pytest.raises(BadInput, match=r"QUANTWRIGHT_KERNELS is 'mmx'; it must be one of portable, avx2"):
        native.load()
