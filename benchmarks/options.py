"""What a benchmark can be asked: the options of ``quantwright bench``, the keys of a job's ``benchmark:``,
and the input of the measuring process."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from quantize.options import Options, Spelled, Text


class BenchSettings(Options):
    """What to run, and how often. A job's section may say as much."""

    prefill: int = Field(512, ge=1, le=2**24, description="prompt tokens processed at once (pp)")
    decode: int = Field(128, ge=1, le=2**24, description="tokens generated one by one (tg)")
    repetitions: int = Field(5, ge=1, le=100_000, description="samples per process")
    rounds: int = Field(1, ge=1, le=100_000, description="go through all artifacts this many times (A B A B)")
    depths: Annotated[list[Annotated[int, Field(ge=0, le=2**24)]], Spelled("--depth")] = Field(
        [0], min_length=1, max_length=1000, description="tokens in the cache before decoding, e.g. 0,512"
    )
    batches: Annotated[list[Annotated[int, Field(ge=1, le=2**16)]], Spelled("--batch")] = Field(
        [1], min_length=1, max_length=1000, description="sequences at once, e.g. 1,4,16"
    )
    attention: Text | None = Field(
        None,
        description="implementation: eager, sdpa, flash_attention_2, ...; for llama.cpp eager or flash",
    )
    compile: bool = Field(
        False, description="use torch.compile; the first call, which compiles, is not counted"
    )
    runtime: Annotated[Literal["vllm"] | None, BeforeValidator(lambda value: value or None)] = Field(
        None, description="measure in vLLM, one's own or that of `env install vllm`"
    )


class BenchOptions(BenchSettings):
    """And how models are opened and fetched, which in a job the runner says."""

    load_as: Text | None = Field(None, description="quantize while loading (quanto, bnb and torchao recipes)")
    prune: bool = Field(
        False, description="delete each downloaded file of a GGUF repository before the next download"
    )

    @field_validator("depths", "batches")
    @classmethod
    def _ascending(cls, values: list[int]) -> list[int]:
        return sorted(set(values))
