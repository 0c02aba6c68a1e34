"""What an evaluation can be asked: the options of ``quantwright eval``, the keywords of ``evals.evaluate``
and the keys of a job's ``evaluate:``, each written once."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from quantize.errors import BadInput
from quantize.options import FileName, Names, Options, Spelled, Text, as_list
from quantize.recipe import Recipe
from quantize.units import parse_size

DEFAULT_PROTOCOL = "llamacpp-512"
DEFAULT_CACHE_LIMIT = "4GiB"

Metric = Literal["perplexity", "divergence"]
METRICS: tuple[str, ...] = get_args(Metric)
Metrics = Annotated[list[Metric], BeforeValidator(as_list)]


def _a_size(value: str | int) -> str | int:
    try:
        parse_size(str(value))
    except BadInput as error:
        raise ValueError(str(error).partition(": ")[2]) from None
    return value


class EvalSettings(Options):
    """What to measure and how. A job's section may say as much."""

    text: FileName | None = Field(
        None, description="UTF-8 text file to measure on (default: the demo's held-out text)"
    )
    metrics: Metrics | None = Field(
        None,
        description="perplexity,divergence (default: both if there is a reference, else perplexity)",
    )
    protocol: Annotated[Names | None, Spelled(default=DEFAULT_PROTOCOL)] = Field(
        None,
        description="how perplexity is measured, separated by commas: llamacpp-N, "
        "gptq-N, lmeval-wikitext, strided-N-STRIDE, exl3-N",
    )
    ids: Literal["source", "runtime"] = Field(
        "source",
        description="which tokenizer makes the token ids: the source's own file, or each runtime's",
    )
    tasks: Names = Field(
        [],
        description="separated by commas: lm-eval names, NAME=FILE or FOLDER (its data), "
        ".jsonl or .yaml files, held-out, or suites: quick, open-llm, chinese, code",
    )
    limit: int | None = Field(None, ge=1, le=2**40, description="items of each task")
    num_fewshot: int | None = Field(
        None, ge=0, le=10_000, description="examples before each item (default: as the task says)"
    )
    apply_chat_template: bool = Field(False, description="put items into the model's chat template")
    chat_template: Annotated[Text | None, Spelled(metavar="NAME")] = Field(
        None, description="which chat template to use, if the model has several"
    )
    allow_code_execution: bool = Field(
        False, description="let tasks run the code that a model writes, on this machine"
    )
    allow_task_code: bool = Field(
        False, description="let YAML tasks run the Python that they name (!function), and metric scripts"
    )
    prompts: Annotated[FileName | list[str] | None, Spelled(path="file")] = Field(
        None, description="file of prompts to continue: one per line, or .jsonl"
    )
    generate: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description="tokens to generate per prompt (default: 64, with prompts cut from the text)",
    )
    tokens: int | None = Field(None, ge=1, le=2**40, description="use only this many tokens of the text")
    cache_limit: Annotated[
        Text | int | None,
        AfterValidator(lambda value: value if value is None else _a_size(value)),
        Spelled(default=DEFAULT_CACHE_LIMIT),
    ] = Field(None, description="disk space for the reference's logits; beyond it, the reference runs again")
    floors: bool = Field(
        True,
        description="with divergence, rows that show which divergence is only "
        "noise: the reference in another dtype, and in llama.cpp",
    )
    weights_only: Literal["sample", "full", "none"] = Field(
        "sample",
        description="measure a GGUF's weights also in the reference's runtime: 1 chunk in 80, all, or none",
    )
    runtime: Annotated[Literal["vllm"] | None, BeforeValidator(lambda value: value or None)] = Field(
        None, description="measure the artifacts in vLLM, one's own or that of `env install vllm`"
    )

    @property
    def protocols(self) -> list[str]:
        return self.protocol or [DEFAULT_PROTOCOL]

    @property
    def cache_limit_bytes(self) -> int:
        return parse_size(str(self.cache_limit or DEFAULT_CACHE_LIMIT))

    @property
    def uses_chat_template(self) -> bool:
        return self.apply_chat_template or self.chat_template is not None


class EvalOptions(EvalSettings):
    """And against what, and where things lie, which in a job the runner says."""

    reference: FileName | None = Field(
        None,
        description="model to compare with: folder, .gguf or Hub id "
        "(default: the source, if it is found, else the largest)",
    )
    load_as: Text | dict[str, Any] | Recipe | None = Field(
        None, description="quantize the model while loading (quanto, bnb and torchao recipes)"
    )
    cache: Annotated[FileName | None, Spelled(path="folder")] = Field(
        None, description="where the reference's logits are kept (default: OUT/cache)"
    )
    prune: bool = Field(
        False,
        description="delete each downloaded file of a GGUF repository before the next download",
    )
