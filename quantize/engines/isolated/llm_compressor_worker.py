"""llm-compressor, run by the Python of its own environment:

    python -I llm_compressor_worker.py REQUEST RESPONSE

It imports the standard library and its engine only. Contract: docs/engines.md.
"""

import json
import sys
import time
from importlib import metadata
from typing import Any


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        request: dict[str, Any] = json.load(file)
    begun = time.monotonic()
    import torch
    from compressed_tensors.quantization import QuantizationConfig
    from llmcompressor import model_free_ptq

    torch.set_num_threads(request["threads"])
    settings, imported = request["settings"], time.monotonic()
    if settings["by"] == "rtn":
        config = QuantizationConfig.model_validate(settings["config"])
        # llm-compressor takes every matrix that is not named, embeddings too
        ignore = [*settings["config"]["ignore"], "re:.*embed.*", "re:.*wte", "re:.*wpe"]
        model_free_ptq(
            request["model"],
            request["stage"],
            config=config,
            ignore=ignore,
            max_workers=request["threads"],
            device=request["device"],
        )
    else:
        by_gptq(request)
    done = time.monotonic()
    packages = ("llmcompressor", "compressed-tensors", "torch", "transformers")
    response = {
        "contract": 1,
        "versions": {name: metadata.version(name) for name in packages},
        "timings_s": {"imports": imported - begun, "quantizing": done - imported},
    }
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(response, file)


def by_gptq(request: dict[str, Any]) -> None:
    import torch
    import transformers
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    settings, rows = request["settings"], torch.tensor(request["calibration"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        request["model"], dtype="auto", device_map=request["device"], trust_remote_code=False
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(request["model"], trust_remote_code=False)
    group = settings["config"]["config_groups"]["group_0"]
    modifier = GPTQModifier(config_groups={"group_0": group}, ignore=settings["config"]["ignore"])
    data: Any = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in rows]
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=torch.utils.data.DataLoader(data, batch_size=None),
        recipe=modifier,
        num_calibration_samples=len(rows),
        max_seq_length=rows.shape[1],
        pipeline="sequential",
    )
    model.save_pretrained(request["stage"], save_compressed=True)


if __name__ == "__main__":
    main()
