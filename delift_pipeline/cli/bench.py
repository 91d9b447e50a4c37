"""`delift bench`: is it fast, and is it worth it?"""

import typer

from delift_pipeline.cli.bench_quality import quality

app = typer.Typer(help="Measure speed and worth.", no_args_is_help=True)
app.command("quality")(quality)
