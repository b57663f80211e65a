"""What the commands share: the console, options that mean the same everywhere, and printing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console()

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; unknown keys are errors.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key.subkey=value, over the file. Repeatable.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Directory to write.")]
DatasetDir = Annotated[Path, typer.Argument(help="Dataset directory.", show_default=False)]


def print_values(values: dict[str, Any]) -> None:
    for name, value in values.items():
        console.print(f"{name}: {value}", highlight=False)
