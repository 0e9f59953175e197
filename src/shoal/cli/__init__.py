"""One command line: ``shoal VERB``. One file a verb; no logic lives here.

Verbs import what they need when they run, so that ``shoal --help`` stays quick.
"""

from __future__ import annotations

import sys

import typer

from shoal import __version__
from shoal.cli.batch import batch
from shoal.cli.chat import chat
from shoal.cli.compress import compress
from shoal.cli.console import fail
from shoal.cli.doctor import doctor
from shoal.cli.hire import app as hire
from shoal.cli.peers import app as peers
from shoal.cli.plan import app as plan
from shoal.cli.reproduce import reproduce
from shoal.cli.run import run
from shoal.cli.runs import app as runs
from shoal.cli.serve import serve
from shoal.cli.settle import settle
from shoal.cli.spgg_models import spgg
from shoal.cli.tools import app as tools
from shoal.cli.train import app as train
from shoal.core.errors import ShoalError

app = typer.Typer(
    name="shoal",
    help="Groups of LLM agents that share: one prefix, one cache, one budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run)
app.add_typer(runs, name="runs")
app.command("chat")(chat)
app.command("serve")(serve)
app.command("batch")(batch)
app.command("settle")(settle)
app.add_typer(hire, name="hire")
app.add_typer(spgg, name="spgg")
app.add_typer(peers, name="peers")
app.add_typer(train, name="train")
app.add_typer(tools, name="tools")
app.command("compress")(compress)
app.add_typer(plan, name="plan")
app.command("doctor")(doctor)
app.command("reproduce")(reproduce)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if version:
        typer.echo(f"shoal {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; a user's mistake is one sentence on stderr and a non-zero exit."""
    try:
        app()
    except ShoalError as error:
        sys.exit(fail(error))
