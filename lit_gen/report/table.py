"""A leaderboard in Python: records of its rows, a text table if printed, and an HTML table in a notebook."""

import io
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from rich.console import Console

from lit_gen.core.errors import UserError
from lit_gen.core.text import printable
from lit_gen.report import render
from lit_gen.report.leaderboard import Leaderboard, paired


class Table(Sequence[dict[str, Any]]):
    """The rows of a leaderboard, best first, as records: dictionaries with `rank`, `model`, `nfe`, the scores, ...

    `print(table)` shows the table of `lit-gen leaderboard`, and a notebook shows it in HTML. `list(table)` suits
    `pandas.DataFrame`.

    Args:
        board: The leaderboard.

    Attributes:
        board: The leaderboard, with rows, floors and protocol as objects.
        records: The records.
    """

    def __init__(self, board: Leaderboard) -> None:
        self.board = board
        self.records = render.to_records(board)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)

    def __getitem__(self, index: Any) -> Any:
        return self.records[index]

    def paired(self, one: str, other: str) -> str:
        """Return one line that says whether one row beats another, each given as `KEY=VALUE,...`."""
        try:
            return paired(self.board, one, other)
        except UserError as error:
            raise UserError(str(error).removeprefix("--")) from None

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        return render.to_markdown(self.board)

    def to_csv(self) -> str:
        """Return the records as CSV."""
        return render.to_csv(self.board)

    def to_json(self) -> str:
        """Return rows, protocol and scores of real images as JSON."""
        return render.to_json(self.board)

    def __str__(self) -> str:
        text = io.StringIO()
        render.print_table(self.board, Console(file=text))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        headers, rows = render.to_cells(self.board)
        head = "".join(f"<th>{escape(header.name)}</th>" for header in headers)
        body = "".join(
            "<tr>"
            + "".join(
                f'<td style="text-align: {header.align}">{escape(cell.text)}</td>'
                for header, cell in zip(headers, row, strict=True)
            )
            + "</tr>"
            for row in rows
        )
        lines = [printable(line) for line in (self.board.protocol_line, self.board.noise_line)]
        above, below = (f"<p>{escape(line)}</p>" for line in lines)
        return f"{above}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"
