"""AutoAWQ, run by the Python of its own environment: python -I autoawq_worker.py REQUEST RESPONSE.

It imports the standard library and its engine only. Contract: docs/engines.md. It computes in float32 where
there is no GPU: its float16 is slow there, and rounds the norms that it scales.
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
    import torch
    from awq import AutoAWQForCausalLM

    imported = time.monotonic()
    torch.set_num_threads(request["threads"])
    settings, rows, cpu = request["settings"], request["calibration"], request["device"] == "cpu"
    if cpu:
        search_on_copies()
    try:
        model = AutoAWQForCausalLM.from_pretrained(
            str(older(Path(request["model"]), Path(request["stage"]).with_name("older"))),
            torch_dtype=torch.float32 if cpu else torch.float16,
            trust_remote_code=False,
            device_map=request["device"],
        )
    except TypeError as error:  # how it says that it does not have a model type
        response["error"] = f"does not take the model: {error}"
    else:
        model.quantize(
            tokenizer=None,
            quant_config={
                "zero_point": not settings["sym"],
                "q_group_size": settings["group_size"],
                "w_bit": settings["bits"],
                "version": "GEMM",
                "modules_to_not_convert": settings["keep"] or None,
            },
            calib_data=rows,
            max_calib_samples=len(rows),
            max_calib_seq_len=len(rows[0]),
        )
        model.save_quantized(request["stage"])
    done = time.monotonic()
    packages = ("autoawq", "torch", "transformers")
    response["versions"] = {name: metadata.version(name) for name in packages}
    response["timings_s"] = {"imports": imported - begun, "quantizing": done - imported}
    response["details"] = {"compute_dtype": "float32" if cpu else "float16"}
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(response, file)


def search_on_copies() -> None:
    """AutoAWQ 0.2.9 keeps a module's weights while it tries scales on them as ``v.cpu()``, which is a copy of
    what lies on a GPU only: on a CPU the first trial's scales stay in the weights."""
    from awq.quantize.quantizer import AwqQuantizer

    search = AwqQuantizer._compute_best_scale

    def careful(
        self: Any, x: Any, w_mean: Any, x_mean: Any, module2inspect: Any, *args: Any, **kwargs: Any
    ) -> Any:
        held = module2inspect.state_dict
        module2inspect.state_dict = lambda: {name: value.clone() for name, value in held().items()}
        try:
            return search(self, x, w_mean, x_mean, module2inspect, *args, **kwargs)
        finally:
            del module2inspect.state_dict

    AwqQuantizer._compute_best_scale = careful


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
        sys.exit("rope parameters that differ from layer to layer are unknown to transformers 4.51")
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


if __name__ == "__main__":
    main()
