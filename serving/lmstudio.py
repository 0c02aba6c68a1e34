"""LM Studio: the GGUF file where it looks for models, ``PUBLISHER/MODEL/FILE.gguf``."""

from quantize.terminal import shell
from serving.target import Exported, Request, gguf_name, safe_name

PUBLISHER = "quantwright"


def lmstudio(request: Request) -> Exported:
    """``name`` may be ``publisher/model``. Errors: Unsupported where the artifact is no GGUF file."""
    path, gguf = request.gguf("LM Studio")
    publisher, slash, model = request.name.rpartition("/")
    folder = f"{safe_name(publisher) if slash else PUBLISHER}/{safe_name(model)}"
    made = Exported(links={f"{folder}/{gguf_name(request, path)}": path})
    made.start = shell("lms", "load", folder)
    made.notes.append("put the folder's contents into LM Studio's models folder (~/.lmstudio/models)")
    if "tokenizer.chat_template" not in gguf.kvs:
        made.notes.append("the file has no chat template: choose one in LM Studio's settings of the model")
    return made
