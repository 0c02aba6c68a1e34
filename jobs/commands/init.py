"""``quantwright init``."""

from pathlib import Path

import click

from quantize.errors import BadInput
from quantize.terminal import say

TEMPLATE = """\
# A job: every model by every recipe, evaluated, benchmarked and reported.
#   quantwright plan {name}      what it will cost
#   quantwright run {name}       do it; run it again to do only what is missing
# Paths are relative to this file. A misspelled key is an error that names the line.

models:
  - path/to/checkpoint # a local folder, or a Hub id
  # - source: org/name
  #   revision: main # pinned to a commit in the manifest
  #   skip: [awq-int4] # recipes not to make of this model
  #   recipes: [gguf-q4_k_m] # or its own recipes, in place of those below
  #   adapters: [my-lora] # PEFT LoRAs: each is merged into the source and measured in its place

# `quantwright methods` lists the short spellings; `quantwright check MODEL` says which work for a model.
recipes:
  - gguf-q4_k_m
  - gptq-int4
  # - gptq:bits=3,group_size=64
  # - {{method: gptq, matrix: {{bits: [3, 4], group_size: [64, 128]}}}} # every combination

# calibration: {{source: calibration.txt, tokens: 32768, sequence_length: 512, seed: 0}} # default: auto
# verify: full # or tensors, none; allow_lower_verification: true if full cannot be reached

evaluate:
  text: held-out # a text file, or the built-in text
  tokens: 20000 # use only this many
  metrics: [perplexity, divergence]
  # protocol: llamacpp-512
  # tasks: [arc_easy, tasks/mine.jsonl]
  # limit: 200 # items of each task
  # num_fewshot: 5 # default: as each task says
  # apply_chat_template: true
  # allow_code_execution: true # for tasks that run what a model wrote, on this machine
  # allow_task_code: true # for YAML tasks that name Python (!function), or metric scripts
  # prompts: prompts.txt # the report shows their continuations side by side
  # generate: 64 # tokens per prompt
  # floors: false # without the rows that show which divergence is only noise
  # weights_only: full # a GGUF's weights in the reference's runtime: 1 chunk in 80 (sample), all, or none

benchmark: {{prefill: 512, decode: 128, repetitions: 5}}
# more: {{depths: [0, 4096], batches: [1, 8], attention: eager, compile: true, rounds: 2}}

# publish: {{repo: "user/{{model}}-{{format}}"}} # to RUN/published; with upload: true to the Hub
# cache: /shared/quantwright # copy what other runs and users have made
# resources: {{threads: 8, memory: 64GiB, parallel: 2, time_limit_minutes: 240}}
"""


@click.command()
@click.argument("job", type=click.Path(path_type=Path), default=Path("job.yaml"))
@click.option("--force", is_flag=True, help="replace the file that is there")
def init(job: Path, force: bool) -> None:
    """Write a commented JOB file to start from."""
    if job.exists() and not force:
        raise BadInput(f"{job}: already exists; choose another name, or pass --force to replace it")
    if not job.absolute().parent.is_dir():
        raise BadInput(f"{job.parent}: no such folder")
    job.write_text(TEMPLATE.format(name=job), encoding="utf-8")
    say(f"{job}: written; edit models and recipes, then: quantwright plan {job}")
