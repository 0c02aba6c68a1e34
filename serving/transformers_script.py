"""transformers: a script that opens the artifact where it lies and chats with it."""

import json

from quantize.errors import Unsupported
from serving.target import Exported, Request

_SCRIPT = '''\
"""Chat with a model on this machine: python chat.py, or python chat.py "a question"."""

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, TextStreamer, set_seed
{imports}
FOLDER = str(Path(__file__).resolve().parent / {folder})
set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(FOLDER{gguf})
model = {model}
streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
messages = []


def answer(text):
    messages.append({{"role": "user", "content": text}})
    if tokenizer.chat_template:
        given = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        given = tokenizer(text, return_tensors="pt")
    given = {{name: value for name, value in given.items() if name in ("input_ids", "attention_mask")}}
    given = {{name: value.to(model.device) for name, value in given.items()}}
    with torch.no_grad():
        out = model.generate(**given, max_new_tokens=256, streamer=streamer)
    said = tokenizer.decode(out[0][given["input_ids"].shape[1] :], skip_special_tokens=True)
    messages.append({{"role": "assistant", "content": said}})


if len(sys.argv) > 1:
    answer(" ".join(sys.argv[1:]))
else:
    for line in iter(lambda: input("> "), ""):
        answer(line)
'''
_AUTO = "from transformers import AutoModelForCausalLM\n"
_OPENERS = {
    "transformers": (_AUTO, 'AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto"{gguf})'),
    "optimum-quanto": (
        "from optimum.quanto import QuantizedModelForCausalLM\n",
        "QuantizedModelForCausalLM.from_pretrained(FOLDER)",
    ),
    "gptqmodel": ("from gptqmodel import GPTQModel\n", "GPTQModel.load(FOLDER)"),
}


def transformers(request: Request) -> Exported:
    """Errors: Unsupported where nothing that is written here opens the artifact."""
    manifest = request.artifact.manifest
    opener = next((name for name in _OPENERS if name in manifest.loads_in), None)
    if opener is None:
        raise Unsupported(
            f"{request.artifact.folder}: is {manifest.recipe_short}, which transformers does not open (it "
            f"loads in {', '.join(manifest.loads_in)})"
        )
    imports, model = _OPENERS[opener]
    file = request.artifact.gguf
    gguf = f", gguf_file={json.dumps(file.name)}" if file is not None else ""
    made = Exported(scripts=("chat.py",), start="python chat.py")
    made.texts["chat.py"] = _SCRIPT.format(
        imports=imports,
        folder=json.dumps(request.folder_from_out),
        gguf=gguf,
        model=model.replace("{gguf}", gguf),
    )
    made.notes.append(
        "made with " + ", ".join(f"{name}=={value}" for name, value in sorted(manifest.libraries.items()))
    )
    if file is not None:
        made.notes.append(
            "transformers unpacks a GGUF file to full precision: it takes the memory of the source"
        )
    if manifest.source.remote_code:
        made.notes.append("the source brings code of its own: add trust_remote_code=True where you trust it")
    return made
