"""``shoal tools``: import what can be called into catalogues, and find it again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from shoal.cli.console import console, errors, print_json
from shoal.cli.progress import loading
from shoal.cli.tools_gateway import call, serve
from shoal.core.errors import ConfigError

app = typer.Typer(help="Tools: import catalogues of interfaces, search, look at one, call, serve.")
app.command("call")(call)
app.command("serve")(serve)


@app.command("import")
def import_(
    names: list[str] = typer.Argument(
        None, help="aws, google, github, or one name of your own with --from. Default: all three."
    ),
    place: str | None = typer.Option(
        None, "--from", help="File, folder or URL: OpenAPI for a name of your own, or a package."
    ),
    json: bool = typer.Option(False, "--json", help="Print what was imported as JSON."),
) -> None:
    """Import descriptions of interfaces; what is in the cache already is only counted."""
    from shoal.tools import sources

    chosen = names or list(sources.NAMES)
    if place is not None and len(chosen) != 1:
        raise ConfigError("--from is the place of one catalogue: give one name with it.")
    rows: list[dict[str, Any]] = []
    with loading(errors) as progress:
        for name in chosen:
            catalogue = sources.load(name, place, progress)
            rows.append(
                {
                    "name": name,
                    "tools": len(catalogue),
                    "served": catalogue.served,
                    "refused": [str(one) for one in catalogue.refused],
                    "file": str(catalogue.paths[0]),
                    "bytes": catalogue.paths[0].stat().st_size,
                }
            )
            catalogue.close()
    if json:
        print_json(rows)
        return
    for row in rows:
        console.print(f"[bold]{row['name']}[/]  {row['tools']:,} tools, {row['served']:,} served")
        for sentence in row["refused"]:
            console.print(f"  {sentence}", markup=False)


@app.command("search")
def search(
    request: str = typer.Argument(..., help="What is to be done, in one or several steps."),
    k: int = typer.Option(5, "-k", min=1, help="How many tools in all."),
    embedder: str = typer.Option("wordllama", help="wordllama, minilm (minutes, once) or none."),
    without: list[str] = typer.Option([], help="A stage to leave out; may be repeated."),
    budget: int | None = typer.Option(None, min=1, help="Tokens that the tools may take."),
    json: bool = typer.Option(False, "--json", help="Print the tools as JSON."),
) -> None:
    """Find tools for a request among everything that is imported."""
    from shoal.models.embedding import Kept, open_embedder
    from shoal.tools import sources
    from shoal.tools.retrieval.kept import open_index
    from shoal.tools.retrieval.settings import STAGES, Settings
    from shoal.tools.text import brief

    for stage in without:
        if stage not in STAGES:
            Settings(stages=(stage,))  # says which stages there are
    settings = Settings(stages=tuple(stage for stage in STAGES if stage not in without))
    with loading(errors) as progress:
        model = None if embedder == "none" else Kept(open_embedder(embedder, progress))
        catalogue = sources.everything()
        index = open_index(catalogue, settings, embedder=model)
    found = index.plan(request, k, budget_tokens=budget)
    if json:
        print_json(asdict(found))
        return
    for tool in found.tools:
        spec = index.spec(tool.name)
        step = f"{tool.step + 1}. " if len(found.steps) > 1 else ""
        console.print(f"{step}[bold]{tool.name}[/] {spec.side_effect} {tool.score:.2f}")
        console.print(f"   {brief(spec.description, 160)}", markup=False, highlight=False)
    if found.over:
        console.print(f"Left out, as they do not fit: {', '.join(t.name for t in found.over)}")
    if not found.tools:
        console.print("No tool matches.")


@app.command("show")
def show(
    name: str = typer.Argument(..., help="A qualified name, such as aws.s3.CreateBucket."),
    json: bool = typer.Option(False, "--json", help="Print the tool as JSON."),
) -> None:
    """Show one tool: documentation, arguments, side effect, origin and version."""
    from shoal.tools import sources
    from shoal.tools.text import brief

    spec = sources.everything()[name]
    if json:
        print_json({**asdict(spec), "version": spec.version})
        return
    served = "served here" if spec.served else "described only"
    console.print(f"[bold]{spec.name}[/]  {spec.side_effect}, {served}, version {spec.version}")
    console.print(f"{spec.service} ({spec.origin})", markup=False, highlight=False)
    console.print(spec.description or "(no documentation)", markup=False, highlight=False)
    required = spec.parameters.get("required", ())
    for argument, schema in spec.parameters.get("properties", {}).items():
        mark = "*" if argument in required else ""
        about = brief(schema.get("description", ""), 120)
        line = f"  {argument}{mark}: {schema.get('type', 'any')}  {about}"
        console.print(line, markup=False, highlight=False)
