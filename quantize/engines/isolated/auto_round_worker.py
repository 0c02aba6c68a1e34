"""auto-round, run by the Python of its own environment: python -I auto_round_worker.py REQUEST RESPONSE.

It imports the standard library and its engine only. Contract: docs/engines.md.
"""

import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

#: as auto-round names what we call gptq and awq
FORMATS = {"gptq": "auto_round:auto_gptq", "awq": "auto_round:auto_awq"}


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        request: dict[str, Any] = json.load(file)
    begun = time.monotonic()
    import torch
    import transformers
    from auto_round import AutoRound

    imported = time.monotonic()
    settings = request["settings"]
    torch.set_num_threads(request["threads"])
    torch.manual_seed(settings["seed"])
    folder = request["model"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    rows = torch.tensor(request["calibration"] or [[0, 1]])
    tuned = settings["iterations"] > 0
    rounder = AutoRound(
        model,
        tokenizer,
        scheme="W4A16",
        bits=settings["bits"],
        group_size=settings["group_size"],
        sym=settings["sym"],
        iters=settings["iterations"],
        dataset=[rows[i : i + 1] for i in range(len(rows))],
        seqlen=rows.shape[1],
        nsamples=len(rows),
        batch_size=min(8, len(rows)),
        seed=settings["seed"],
        layer_config={name: {"bits": 16} for name in settings["keep"]},
        device_map=request["device"],
        enable_torch_compile=False,
        **({} if tuned else {"disable_opt_rtn": True}),  # else it wants text for that too
    )
    rounder.quantize_and_save(request["stage"], format=FORMATS[settings["format"]])
    stage = Path(request["stage"])
    for made in [path for path in stage.iterdir() if path.is_dir()]:  # named after bits and groups
        for path in list(made.iterdir()):
            path.rename(stage / path.name)
        made.rmdir()
    done = time.monotonic()
    packages = ("auto-round", "torch", "transformers")
    response = {
        "contract": 1,
        "versions": {name: metadata.version(name) for name in packages},
        "timings_s": {"imports": imported - begun, "quantizing": done - imported},
    }
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(response, file)


if __name__ == "__main__":
    main()
