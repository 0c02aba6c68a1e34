"""The ``quantwright`` command. Holds lazy strings only: ``quantwright --help`` imports neither torch nor
transformers."""

import os
import signal
import sys
from importlib import import_module
from typing import Any

import click

from quantize.disk_errors import disk_error
from quantize.errors import QuantwrightError
from quantize.terminal import settle_output

# name -> (where its click command lives, the line shown by --help)
COMMANDS = {
    "demo": ("jobs.commands.demo:demo", "Convert, verify, measure and report the embedded checkpoint."),
    "convert": ("quantize.commands.convert:convert", "Make quantized artifacts from a checkpoint."),
    "imatrix": (
        "quantize.commands.imatrix:imatrix",
        "Compute the importance matrix of a model over a text, for GGUF.",
    ),
    "eval": ("evals.command:evaluate", "Measure perplexity, divergence and task accuracy."),
    "bench": (
        "benchmarks.command:bench",
        "Measure prefill and decode speed, time to first token and memory.",
    ),
    "report": ("reports.command:report", "Compare runs: HTML, Markdown, CSV and JSON."),
    "recommend": (
        "reports.command:recommend",
        "Name the artifact to ship for a memory, speed and loss budget.",
    ),
    "publish": ("reports.command:publish", "Write or upload a Hub repository with a measured model card."),
    "export": (
        "serving.command:command",
        "Write what another program (Ollama, vLLM, LM Studio ...) needs to run an artifact.",
    ),
    "serve": ("serving.serve_command:command", "Start an artifact's own server, which speaks OpenAI's API."),
    "try": ("serving.try_command:command", "Chat with several artifacts side by side, on a local page."),
    "run": ("jobs.commands.run:run", "Run a job file: models x recipes x evaluations, resumable."),
    "plan": ("jobs.commands.plan:plan", "Estimate what a conversion or a job will cost before it starts."),
    "inspect": (
        "quantize.commands.inspect:inspect",
        "Say what a checkpoint or artifact is, from its headers, and what looks wrong.",
    ),
    "compare": (
        "quantize.commands.compare:compare",
        "Say where two models differ: weights, settings, tokenizer.",
    ),
    "attest": (
        "quantize.commands.attest:attest",
        "Make an artifact again from its source and state that the bytes are the same.",
    ),
    "verify": (
        "quantize.commands.verify:verify",
        "Run a quantized model in every runtime that can load it; say what is not as it should be.",
    ),
    "check": ("jobs.commands.check:check", "Say which recipes work for a checkpoint, and why others do not."),
    "init": ("jobs.commands.init:init", "Write a commented job file to start from."),
    "status": ("jobs.commands.status:status", "Show the progress of the jobs in a run folder."),
    "clean": ("jobs.commands.clean:clean", "Delete what no job refers to, or interrupted work."),
    "methods": (
        "quantize.commands.methods:methods",
        "List every recipe, what it needs and whether it can run here.",
    ),
    "env": (
        "quantize.commands.env:env",
        "Install, list, check or remove engines that live in environments of their own.",
    ),
    "doctor": ("quantize.commands.methods:doctor", "Check this installation."),
}


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]):  # type: ignore[no-untyped-def]
        import difflib

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            raise click.UsageError(
                f"no command {args[0]!r}" + (f" (did you mean {close[0]}?)" if close else "")
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="quantwright", prog_name="quantwright")
def cli() -> None:
    """Quantize a Hugging Face checkpoint in every format people deploy, measure each result, publish the one
    you choose."""


def main() -> None:
    # Kernels built on first use (quanto, gptqmodel) look for ninja on PATH; `.venv/bin/quantwright` alone
    # does not put it there.
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    settle_output()
    end_on_signals()
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except QuantwrightError as error:
        click.echo(f"quantwright: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # who read our output is gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        known = disk_error(error, getattr(error, "filename", None) or "a file")
        if known is error:
            raise
        click.echo(f"quantwright: {known}", err=True)
        sys.exit(1)


def end_on_signals() -> None:
    """SIGTERM and SIGHUP end the command as Ctrl-C does, so that it clears up; its exit code is then as a
    shell shows it. What was ignored when it began (nohup) stays so."""

    def end(number: int, frame: Any) -> None:
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)  # clearing up is not interrupted
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


if __name__ == "__main__":
    main()
