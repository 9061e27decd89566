"""The table of all full-size recipes, from their headers and keys.

    python tools/recipes_table.py [--write]

prints it as Markdown; with --write it goes into docs/recipes.md, in place of the table there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import mtvl.errors  # noqa: F401
except ImportError:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from recipe_checks.header import RECIPES, ROOT, Header, full_size_recipes  # noqa: E402

from mtvl.config import load_run_config  # noqa: E402
from mtvl.errors import ConfigError, MtvlError  # noqa: E402

PAGE = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- written by tools/recipes_table.py -->", "<!-- end of the table -->"
COLUMNS = ("recipe", "row", "published", "trained", "learning rate", "steps x batch")


def row(header: Header) -> list[str]:
    """Cells of one recipe."""
    config = load_run_config(header.recipe)
    path = header.recipe.relative_to(RECIPES)
    remark = f"; {header.remark}" if header.remark else ""
    return [
        f"[{path.with_suffix('')}](../launch/recipes/{path})", header.row, header.published,
        f"{header.trained:,} of {header.total:,} ({header.percent} %{remark})", f"{config.optim.lr:g}",
        f"{config.train.steps:,} x {config.train.global_batch}",
    ]  # fmt: skip


def markdown(headers: Sequence[Header]) -> str:
    """The table, one line a recipe, without padding, so that a change of one row changes one line."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(row(h) for h in headers)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def page(text: str, table: str) -> str:
    """The page `text` with `table` between its marks; ConfigError when they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{PAGE}: expected the lines {BEGIN!r} and {END!r}, which hold the table; put them back")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit 2 on a recipe or page that cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/recipes.md")
    options = parser.parse_args(arguments)
    try:
        table = markdown(full_size_recipes())
        if options.write:
            PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), table), encoding="utf-8")
        else:
            print(table, end="")
    except MtvlError as error:
        print(f"recipes_table: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
