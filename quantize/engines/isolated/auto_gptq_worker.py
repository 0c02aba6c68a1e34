"""AutoGPTQ, run by the Python of its own environment: python -I auto_gptq_worker.py REQUEST RESPONSE.

It imports the standard library and its engine only. Contract: docs/engines.md. It quantizes on a CUDA GPU
only (task ``quantize``); its loader runs on a CPU too, which task ``read`` asks for logits.
"""

import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        request: dict[str, Any] = json.load(file)
    response: dict[str, Any] = {"contract": 1}
    begun = time.monotonic()
    import auto_gptq
    import torch

    imported = time.monotonic()
    torch.set_num_threads(request["threads"])
    task = read if request["task"] == "read" else quantize
    folder = older(Path(request["model"]), Path(request["stage"]).with_name("older"))
    try:
        response["details"] = task(auto_gptq, folder, request)
    except (TypeError, OSError) as error:  # a model type that it does not have; no GPU
        response["error"] = f"does not take the model: {error}"
    done = time.monotonic()
    packages = ("auto_gptq", "torch", "transformers")
    response["versions"] = {name: metadata.version(name) for name in packages}
    response["timings_s"] = {"imports": imported - begun, task.__name__: done - imported}
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(response, file)


def quantize(auto_gptq: Any, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    import torch

    settings = request["settings"]
    config = auto_gptq.BaseQuantizeConfig(
        bits=settings["bits"],
        group_size=settings["group_size"],
        damp_percent=settings["damp_percent"],
        desc_act=settings["desc_act"],
        sym=settings["sym"],
    )
    model = auto_gptq.AutoGPTQForCausalLM.from_pretrained(str(folder), config, trust_remote_code=False)
    rows = [torch.tensor(row)[None] for row in request["calibration"]]
    model.quantize(
        [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows],
        cache_examples_on_gpu=False,
    )
    model.save_quantized(request["stage"], use_safetensors=True)
    return {"compute_dtype": "float16"}


def read(auto_gptq: Any, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """``settings``: ``rows`` of token ids, whose logits go into ``logits.f32`` as float32; and a ``prompt``,
    continued greedily by ``tokens``."""
    import torch

    settings = request["settings"]
    loaded = auto_gptq.AutoGPTQForCausalLM.from_quantized(
        str(folder),
        device=request["device"],
        torch_dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
    )
    model = loaded.model.eval()
    if model.config.tie_word_embeddings:
        tie(model, folder)
    with torch.no_grad(), open(Path(request["stage"], "logits.f32"), "wb") as file:
        for row in settings["rows"]:
            logits = model(torch.tensor([row], device=model.device)).logits[0]
            file.write(logits.float().cpu().numpy().tobytes())
        ids = list(settings["prompt"])
        for _ in range(settings["tokens"]):
            logits = model(torch.tensor([ids], device=model.device)).logits
            ids.append(int(logits[0, -1].argmax()))
    return {"generated": ids[len(settings["prompt"]) :], "vocabulary": model.config.vocab_size}


def tie(model: Any, folder: Path) -> None:
    """The embedding again: AutoGPTQ 0.7.1 ties it to a head that no file holds, and both are zeros then."""
    from safetensors import safe_open

    embedding = model.get_input_embeddings()
    (name,) = (name for name, module in model.named_modules() if module is embedding)
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            if f"{name}.weight" in set(tensors.keys()):
                embedding.weight.data = tensors.get_tensor(f"{name}.weight").to(embedding.weight)
    model.tie_weights()


def older(folder: Path, target: Path) -> Path:
    """The checkpoint in ``target`` with a config in the words of transformers 4."""
    target.mkdir()
    for path in folder.iterdir():
        if path.name != "config.json":
            (target / path.name).symlink_to(path.resolve())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters", None) or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        rest = {key: value for key, value in rope.items() if key != "rope_theta"}
        config["rope_scaling"] = rest if rest.get("rope_type", "default") != "default" else None
    elif rope:
        sys.exit("rope parameters that differ from layer to layer are unknown to transformers 4.46")
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


if __name__ == "__main__":
    main()
