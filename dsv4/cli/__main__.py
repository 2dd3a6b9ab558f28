"""`dsv4`: every verb, loaded only when it is called, so that `dsv4 --help` stays quick."""

import sys

from cyclopts import App

import dsv4

VERBS = {
    "chat": "Talk to a model in the terminal.",
    "serve": "Start the HTTP server for OpenAI and Anthropic clients.",
    "usage": "What a server has answered: tokens and costs by day, key and model.",
    "generate": "Continue a prompt on stdout.",
    "render": "Print the prompts that requests become, without a model.",
    "inspect": "Layer plan, parameters, cache and FLOPs of a model, beside V3.2.",
    "convert": "Write a checkpoint in another layout.",
    "check": "Verify a checkpoint folder without loading it.",
    "train": "Train a model from a recipe, or go on with a run.",
    "bench": "Measure prefill and decode speed by context length.",
}


def make_app() -> App:
    """The command line as data; a test freezes its verbs and flags."""
    app = App(
        name="dsv4",
        help="DeepSeek-V4 end to end. `dsv4 chat` talks to the bundled model, `dsv4 serve` starts the server.",
        version=dsv4.__version__,
    )
    for verb, summary in VERBS.items():
        app.command(f"dsv4.cli.{verb}:{verb}", name=verb, help=summary)
    return app


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed with a message, 2 usage, 130 Ctrl-C."""
    try:
        make_app()()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has enough
        sys.stderr.close()
        sys.exit(1)
    except (ValueError, OSError) as error:  # mistakes of the user or the machine: a sentence, not a traceback
        print(f"dsv4: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
