"""An embedding model pools in llama.cpp as its folder says: Qwen3-Embedding takes the last token's state."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from family_case import TIGHT, Case
from family_cases import make, write_gguf_f32

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.filterwarnings("ignore")


def embedded(path: Path, ids: np.ndarray) -> np.ndarray:
    """(hidden,): what llama.cpp gives for the sequence, pooled as the file says."""
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.embeddings, settings.n_ctx, settings.n_threads = True, 64, 1
    settings.flash_attn_type, settings.type_k, settings.type_v = 0, 0, 0
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    try:
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids.tolist()):
            batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        assert llama_cpp.llama_decode(context, batch) == 0
        width = llama_cpp.llama_model_n_embd(model)
        return np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(context, 0), (width,)).copy()
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


@pytest.mark.parametrize("mode", ["lasttoken", "mean_tokens", "cls_token"])
def test_states_are_pooled_as_the_folder_says(mode: str, tmp_path: Path) -> None:
    """The base model's own names, without a head, as the published Qwen3-Embedding has them."""
    model, folder = make(
        Case("embedding", "qwen3", {"head_dim": 32, "tie_word_embeddings": True}), tmp_path / "hf"
    )
    model.base_model.save_pretrained(folder)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": index,
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen3Model"]
    write_gguf_f32(folder, tmp_path / "model.gguf")
    ids = np.random.default_rng(5).integers(1, 160, 40)
    with torch.no_grad():
        states = model.base_model(torch.from_numpy(ids[None])).last_hidden_state[0].numpy()
    expected = {"lasttoken": states[-1], "mean_tokens": states.mean(axis=0), "cls_token": states[0]}[mode]
    got = embedded(tmp_path / "model.gguf", ids)
    assert np.abs(got - expected).max() / expected.std() < TIGHT
