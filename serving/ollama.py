"""Ollama: a Modelfile beside the GGUF file, its template derived from the model's own.

Source of the Modelfile's rules: ollama's docs/modelfile and parser/parser.go: a value in triple quotes is
taken as it is, but characters that do not print are dropped, and there are no escapes.
"""

from collections.abc import Mapping
from typing import Any

from gguf import Keys, TokenType

from quantize.chat.render import TemplateRefuses
from quantize.chat.templates import ChatTemplate
from quantize.errors import BadInput
from quantize.gguf.tokenizer.chat_templates import end_tokens, special_tokens, templates_of
from quantize.terminal import printable, shell
from serving.chat_shape import Refused, Shape, clock, cuts_reasoning, expected, learn
from serving.conversations import conversations
from serving.go_reader import GoError, GoTemplate
from serving.go_template import prints, written
from serving.target import Exported, Request, gguf_context, gguf_name, number, safe_name

#: GGUF's key -> Ollama's parameter
_PARAMETERS = {
    Keys.General.SAMPLING_TEMP: "temperature",
    Keys.General.SAMPLING_TOP_K: "top_k",
    Keys.General.SAMPLING_TOP_P: "top_p",
    Keys.General.SAMPLING_MIN_P: "min_p",
    Keys.General.SAMPLING_PENALTY_REPEAT: "repeat_penalty",
    Keys.General.SAMPLING_PENALTY_LAST_N: "repeat_last_n",
}
_WHOLE = ("top_k", "repeat_last_n")
OLLAMA_CONTEXT = 4096  # what Ollama gives a model that says nothing
_SPECIAL = (int(TokenType.CONTROL), int(TokenType.USER_DEFINED))
NO_TEMPLATE = "{{ .Prompt }}"
MAX_LOST = 5


def ollama(request: Request) -> Exported:
    """Errors: Unsupported where the artifact is no GGUF file; BadInput where its template takes too much."""
    path, gguf = request.gguf("Ollama")
    made = Exported()
    name = gguf_name(request, path)
    made.links[name] = path
    texts = templates_of(gguf.kvs)
    shape = None
    template_text = NO_TEMPLATE
    if "default" in texts:
        template = ChatTemplate(texts["default"], special_tokens(gguf.kvs), str(path))
        bos = template.special.get("bos_token", "") if gguf.kvs.get(Keys.Tokenizer.ADD_BOS) is True else ""
        shape = learn(template, bos)
        template_text = written(shape)
        made.lost += differences(template, shape, template_text, bos)
        made.notes += _notes(template)
        if len(texts) > 1:
            made.notes.append(f"the file's other templates are left out: {', '.join(sorted(texts)[1:6])}")
    else:
        made.notes.append("the file has no chat template: Ollama sends what is typed as it is")
    lines = [f"FROM ./{name}", f'TEMPLATE """{template_text}"""']
    for stop in stops(gguf.kvs, shape):
        value = quoted(stop)
        if value is None:
            made.lost.append(f"the stop token {printable(stop, 60)!r} cannot be written in a Modelfile")
        else:
            lines.append(f"PARAMETER stop {value}")
    lines += [f"PARAMETER {key} {value}" for key, value in parameters(gguf.kvs, request.context).items()]
    made.texts["Modelfile"] = "\n".join(lines) + "\n"
    made.start = shell("ollama", "create", safe_name(request.name).lower(), "-f", "Modelfile")
    return made


def stops(kvs: Mapping[str, Any], shape: Shape | None) -> list[str]:
    """Texts that end an answer: the file's tokens that end generation, and the special token with which the
    template follows an answer."""
    tokens, types = kvs.get(Keys.Tokenizer.LIST), kvs.get(Keys.Tokenizer.TOKEN_TYPE)
    if not isinstance(tokens, list):
        return []
    found = [str(tokens[number]) for number in end_tokens(kvs)]
    if shape is not None and isinstance(types, list) and len(types) == len(tokens):
        special = {str(text) for text, kind in zip(tokens, types, strict=True) if kind in _SPECIAL}
        for place, pieces in shape.written.items():
            if place.previous == "assistant" and not isinstance(pieces, Refused):
                begin = pieces[0].lstrip() if pieces and isinstance(pieces[0], str) else ""
                found.append(
                    max((text for text in special if text and begin.startswith(text)), key=len, default="")
                )
    return [text for text in dict.fromkeys(found) if text.strip()]


def parameters(kvs: Mapping[str, Any], context: int | None) -> dict[str, str]:
    """Ollama's parameters from what the file says of sampling (its source's generation_config.json), and the
    context where that is asked for, or the model's own is below Ollama's default."""
    given: dict[str, str] = {}
    for key, name in _PARAMETERS.items():
        value = number(kvs.get(key))
        if value is not None:
            given[name] = str(int(value)) if name in _WHOLE else f"{value:.6g}"
    own = gguf_context(kvs)
    wanted = context or (own if own is not None and own < OLLAMA_CONTEXT else None)
    if wanted is not None:
        given["num_ctx"] = str(wanted)
    return given


def quoted(text: str) -> str | None:
    """A Modelfile's value; None where it cannot say it."""
    if not prints(text) or '"""' in text or text.endswith('"'):
        return None
    return f'"{text}"' if '"' not in text and "\n" not in text else f'"""{text}"""'


def differences(template: ChatTemplate, shape: Shape, go: str, bos: str) -> list[str]:
    """What the template in Go does otherwise, by rendering conversations both ways."""
    lost = list(shape.lost)
    if clock(template):
        lost.append("the date: the chat template writes today's, Ollama's the day of this export")
    program = GoTemplate(go)
    for what, messages in conversations(template).items():
        try:
            wanted: str | None = expected(template, messages, bos)
        except TemplateRefuses:
            wanted = None
        except BadInput:
            if messages[-1]["role"] != "assistant":
                raise
            continue  # an answer that this template cannot leave open
        try:
            found: str | None = program.execute(messages)
        except GoError:
            found = None
        if found != wanted:
            lost.append(f"{what}: {_difference(wanted, found)}")
    more = len(lost) - MAX_LOST
    return [*lost[:MAX_LOST], *([f"and {more} more"] if more > 0 else [])]


def _difference(wanted: str | None, found: str | None) -> str:
    if wanted is None or found is None:
        return (
            "the chat template refuses it" if wanted is None else "it is refused, the chat template takes it"
        )
    at = next(
        (i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b),
        min(len(wanted), len(found)),
    )
    return f"{printable(repr(wanted[at : at + 40]))} is written as {printable(repr(found[at : at + 40]))}"


def _notes(template: ChatTemplate) -> list[str]:
    notes = []
    if "tools" in template.text:
        notes.append("tools: what the chat template writes of tools is left out, so Ollama refuses tools")
    if cuts_reasoning(template):
        notes.append(
            "reasoning: the chat template leaves <think>...</think> out of earlier answers; send them without"
        )
    return notes
