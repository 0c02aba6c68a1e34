"""The runtime against plain transformers: sliced logits, cache, families that treat their logits specially,
bad folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize.errors import BadInput, Unsupported
from quantize.methods.registry import parse_recipe
from quantize.recipe import RunOptions
from quantize.runtimes import transformers as module
from quantize.runtimes.opening import open_runtime, open_without_weights
from quantize.runtimes.transformers import TransformersRuntime

CPU = RunOptions(device="cpu")
ROWS = np.arange(1, 41, dtype=np.int64).reshape(2, 20) * 7 % 300


def tiny(folder: Path, kind: str, **extra: Any) -> Path:
    """A random model of ``kind`` with a vocabulary of 300; no tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    settings = {
        "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2, **extra,
    }  # fmt: skip
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).save_pretrained(folder)
    return folder


def gather(runtime: Any, rows: np.ndarray, first: int = 0) -> np.ndarray:
    out = np.full((len(rows), rows.shape[1] - first, runtime.vocabulary), np.nan, np.float32)

    def consume(row: int, begin: int, logits: np.ndarray) -> None:
        assert logits.dtype == np.float32
        out[row, begin - first : begin - first + len(logits)] = logits

    runtime.logits(rows, first, consume)
    return out


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("qwen2", {}),
        ("gemma2", {"final_logit_softcapping": 0.05, "query_pre_attn_scalar": 16}),
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.25}),
    ],
)
def test_sliced_logits_are_the_models_own(
    kind: str, extra: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny(tmp_path / "m", kind, **extra)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(input_ids=torch.from_numpy(ROWS)).logits.numpy()
    with open_runtime(folder, CPU) as runtime:
        np.testing.assert_allclose(gather(runtime, ROWS), wanted, atol=1e-5)
        monkeypatch.setattr(module, "LOGITS_BYTES", 3 * 300 * 4)
        np.testing.assert_allclose(gather(runtime, ROWS, 5), wanted[:, 5:], atol=1e-5)
        start = runtime.start(ROWS[0, :9].tolist())
        np.testing.assert_allclose(start, wanted[0, 8], atol=1e-5)
        np.testing.assert_allclose(runtime.step(int(ROWS[0, 9])), wanted[0, 9], atol=1e-5)
        assert runtime.describe()["dtype"] == "float32"


def test_no_more_logits_than_allowed_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS_BYTES", 4 * 300 * 4)
    sizes: list[int] = []
    with open_runtime(tiny(tmp_path / "m", "llama"), CPU) as runtime:
        runtime.logits(ROWS, 0, lambda row, first, logits: sizes.append(len(logits)))
    assert sizes == [4] * 10


def test_rows_and_ids_out_of_range(tmp_path: Path) -> None:
    with open_runtime(tiny(tmp_path / "m", "llama"), CPU) as runtime:
        with pytest.raises(BadInput, match="outside the model's vocabulary of 300"):
            gather(runtime, np.array([[300]]))
        with pytest.raises(BadInput, match="exceeds the model's context of 64"):
            gather(runtime, np.zeros((1, 65), np.int64))
        with pytest.raises(BadInput, match="no tokens"):
            runtime.start([])


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny(tmp_path / "m", "llama")
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        BadInput, match=r"no weights of the right shape for model.layers.1.mlp.up_proj.weight"
    ):
        TransformersRuntime(folder, CPU)


def test_unknown_architectures_and_empty_folders(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    with pytest.raises(Unsupported, match="nonesuch"):
        TransformersRuntime(folder, CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no config.json"):
        TransformersRuntime(tmp_path / "empty", CPU)
    with pytest.raises(BadInput, match="no such folder"):
        TransformersRuntime(tmp_path / "none" / "here", CPU)


def test_nan_logits_are_handed_on(tmp_path: Path) -> None:
    """What to make of them is for whoever consumes: verification fails, evaluation counts."""
    from safetensors.torch import load_file, save_file

    folder = tiny(tmp_path / "m", "llama")
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][:] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with open_runtime(folder, CPU) as runtime:
        assert np.isnan(gather(runtime, ROWS)).all()


@pytest.mark.parametrize(
    "short", ["quanto-int8", "quanto-int4", "quanto-float8", "bnb-nf4", "bnb-int8", "torchao-int8"]
)
def test_quantized_on_the_fly_equals_converted(
    short: str, make_checkpoint: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from quantize import convert

    source = make_checkpoint(num_hidden_layers=1)
    convert(source, short, tmp_path / "a", verify="none", run=CPU)
    with open_runtime(source, CPU) as runtime:
        plain = gather(runtime, ROWS)
    with open_runtime(source, CPU, load_as=parse_recipe(short)) as runtime:
        flying = gather(runtime, ROWS)
        assert runtime.describe()["kernels"]
    with open_runtime(tmp_path / "a", CPU) as runtime:
        stored = gather(runtime, ROWS)
    np.testing.assert_allclose(flying, stored, atol=1e-5)
    assert 1e-4 < np.abs(stored - plain).max() < 0.5
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""  # noqa: PT018


def test_only_some_recipes_can_be_loaded_as(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m", "llama")
    with pytest.raises(BadInput, match="only quanto, bnb and torchao"):
        open_runtime(folder, CPU, load_as=parse_recipe("gguf-q8_0"))
    (folder / "quanto_qmap.json").write_text("{}")
    with pytest.raises(BadInput, match="already stored as quanto"):
        open_runtime(folder, CPU, load_as=parse_recipe("bnb-nf4"))


def test_streamed_weights_give_the_same_logits(make_checkpoint: Callable[..., Path]) -> None:
    from quantize import Checkpoint, open_checkpoint
    from quantize.calibration.layers import streamed_model

    for tied in (False, True):
        folder = make_checkpoint(tie_word_embeddings=tied, num_hidden_layers=2)
        checkpoint = open_checkpoint(folder)
        reads: list[str] = []

        def read(name: str, checkpoint: Checkpoint = checkpoint, reads: list[str] = reads) -> np.ndarray:
            reads.append(name)
            return checkpoint.read_float32(name)

        model = streamed_model(checkpoint, read)
        assert {p.device.type for p in model.parameters()} == {"meta"}
        with TransformersRuntime(folder, CPU, model=model) as runtime:
            streamed = gather(runtime, ROWS)
        assert {p.device.type for p in model.parameters()} == {"meta"}  # freed again
        assert set(reads) == set(checkpoint.tensors)
        with open_runtime(folder, CPU) as runtime:
            np.testing.assert_array_equal(streamed, gather(runtime, ROWS))
        shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_runtime_without_weights_describes_itself_as_the_whole(demo_checkpoint: Path, dtype: str) -> None:
    run = RunOptions(threads=1, dtype=dtype)  # type: ignore[arg-type]
    light = open_without_weights(demo_checkpoint, run)
    assert isinstance(light, TransformersRuntime)
    assert all(parameter.is_meta for parameter in light.model.parameters())
    with open_runtime(demo_checkpoint, run) as whole:
        assert light.describe() == whole.describe()
        assert (light.vocabulary, light.context) == (whole.vocabulary, whole.context)
        assert light.tokenize("Some words") == whole.tokenize("Some words")


@pytest.mark.parametrize(("dtype", "tolerance"), [("auto", 1e-4), ("bfloat16", 0), ("float16", 2e-2)])
def test_fp8_that_transformers_dequantizes_runs_in_any_dtype(
    make_checkpoint: Callable[..., Path], tmp_path: Path, dtype: str, tolerance: float
) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(make_checkpoint(num_hidden_layers=1), tmp_path / "fp8")
    config = json.loads((folder / "config.json").read_text())
    blocks = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
    }
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": blocks}))
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "proj" in name]:
        rows, columns = tensors[name].shape
        squares = tensors[name].float().reshape(rows // 128, 128, columns // 128, 128)
        scales = squares.abs().amax((1, 3)) / 448
        packed = (squares / scales[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
        tensors |= {name: packed, f"{name}_scale_inv": scales}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with TransformersRuntime(folder, CPU.model_copy(update={"dtype": dtype})) as runtime:
        got = gather(runtime, ROWS)
    own = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32
    )
    with torch.no_grad():
        wanted = (own if dtype == "bfloat16" else own.float())(torch.as_tensor(ROWS)).logits.float().numpy()
    np.testing.assert_allclose(got, wanted, atol=tolerance)
