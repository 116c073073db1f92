"""Writing of the report: every section is made from a run or a grid, and one HTML file is written."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from scenedistill import __version__
from scenedistill.core.disk import write_text
from scenedistill.core.errors import UserError
from scenedistill.reporting.html.attention_maps import NetworkMaps
from scenedistill.reporting.html.blocks import Section
from scenedistill.reporting.html.config import ReportConfig
from scenedistill.reporting.html.figures import ENDINGS, write_figures
from scenedistill.reporting.html.focus import Focus, choose
from scenedistill.reporting.html.images import Thumbnails, find_data
from scenedistill.reporting.html.matrices import LISTED, Matrices, matrices
from scenedistill.reporting.html.sections import details, overview
from scenedistill.reporting.html.sections.comparison import compared_methods, comparison_section
from scenedistill.reporting.html.sections.pictures import gradcam_and_embedding_sections, matrix_section, pairs
from scenedistill.runs.network import TEACHER
from scenedistill.runs.run import Cell, Run

LARGEST = 15_000_000  # bytes of the page, at most; thumbnails get what the other content leaves
THUMBNAILS = 5_000_000  # bytes of all thumbnails, at most
LISTS = 7_000_000  # bytes of the image lists of the matrix entries, at most; longer lists are shortened


def write_report(
    folder: Path | str,
    out: Path | str | None = None,
    *,
    data: Path | str | Mapping[str, Path | str] | None = None,
    figures: Path | str | None = None,
    ending: str = "pdf",
    config: ReportConfig | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write the report of a run or a grid as one HTML file that loads nothing from the internet.

    The page stays below 15 MB: thumbnails are added, the most informative first, until they take 5 MB or the page is
    full. If the images are not found, the report is made without them and says so.

    Args:
        folder: folder of the run or the grid, finished or not.
        out: file to write; `report.html` in the folder when not given.
        data: folder of the images, or data set of the grid to folder; when not given, the folder in the run's or the
            grid's record.
        figures: folder for the figures as separate files; none are written when not given.
        ending: format of these files: `pdf`, `svg` or `png`.
        config: what to look at closely.
        say: called with a message before each slow step and for damaged files.

    Raises:
        UserError: no finished network in the folder, an unknown name in `config`, or an invalid setting.
    """
    given = {name: Path(path) for name, path in data.items()} if isinstance(data, Mapping) else Path(data or "")
    config = config or ReportConfig()
    if min(config.gradcam_images, config.map_images) < 0:
        raise UserError("--gradcam_images and --map_images are numbers of images: 0 or more.")
    found = Run.open(folder)
    if found.damaged:
        say(overview.damaged_text(found))
    if found.unreadable:
        say(overview.unreadable_text(found))
    focus = choose(found, config)
    target = Path(out) if out is not None else found.folder / "report.html"
    if target.is_dir():
        raise UserError(f"--out {target} is a folder; expected a file such as {target / 'report.html'}.")
    _check_figures(figures, ending)

    left_out: list[str] = []
    roots = {cell.key: _root(found, cell, given if data else None, left_out) for cell in found.cells}
    thumbnails = Thumbnails(THUMBNAILS)
    drawn, network_maps = _matrices(found, focus, left_out), NetworkMaps()
    pictured = gradcam_and_embedding_sections(focus, roots[focus.cell.key], config, say, left_out, network_maps)
    compared = compared_methods(found, focus)
    confused = pairs(focus, roots[focus.cell.key], thumbnails)
    sections = [
        overview.in_short(found, focus),
        overview.what_was_run(found),
        overview.results(found),
        comparison_section(compared),
        details.classes(focus),
        matrix_section(bool(drawn)),
        confused,
        *pictured,
        details.curves(focus),
        details.parts(focus),
        details.calibrations(focus),
        overview.cost(found),
        overview.tuning(found),
    ]
    page = _page(found, [*sections, overview.missing(found, left_out)], "")
    say("small copies of images")
    _attach(drawn, roots, thumbnails, LARGEST - len(page.encode()))
    if thumbnails.unreadable:
        name, reason = next(iter(thumbnails.unreadable.items()))
        left_out.append(f"{len(thumbnails.unreadable)} images that cannot be read, such as {name}: {reason}")
    content = {
        "thumbnails": thumbnails.uris,
        "matrices": [_view(found, focus, cell, matrix) for cell, matrix in _first(drawn, focus.cell)],
    }
    text = _page(found, [*sections, overview.missing(found, left_out)], _as_script(content))
    if figures is not None:
        say("figures for a paper")
        write_figures(focus, compared, roots[focus.cell.key], network_maps, Path(figures), ending)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    return target


def _check_figures(figures: Path | str | None, ending: str) -> None:
    if ending not in ENDINGS:
        raise UserError(f"--as is {ending}; expected one of {', '.join(ENDINGS)}.")
    if figures is not None and Path(figures).is_file():
        raise UserError(f"--figures {figures} is a file; expected a folder for the figures.")


def _root(found: Run, cell: Cell, given: Path | Mapping[str, Path] | None, left_out: list[str]) -> Path | None:
    root, reason = find_data(found, cell, given)
    if root is None:
        which = f" of {found.title_of(cell)}" if len(found.cells) > 1 else ""
        hint = "" if "outputs.npz" in reason else " Give their folder with --data."
        left_out.append(f"Images{which}, Grad-CAM and the map of embeddings are left out: {reason}.{hint}")
    return root


def _matrices(found: Run, focus: Focus, left_out: list[str]) -> list[tuple[Cell, Matrices]]:
    """Return the matrices of every cell that has any, with as many images listed as the page has room for.

    If there is no room even for the counts, only the cell looked at closely is kept.
    """
    focus_networks = [network for group in focus.groups.values() for network in group]
    drawn: list[tuple[Cell, Matrices]] = []
    for listed in (LISTED, 6, 3, 1, 0):
        made = [(cell, matrices(cell, focus_networks, listed)) for cell in found.cells]
        drawn = [(cell, matrix) for cell, matrix in made if matrix is not None]
        if sum(matrix.size for _, matrix in drawn) <= LISTS:
            return drawn
    own = [(cell, matrix) for cell, matrix in drawn if cell is focus.cell]
    if len(own) < len(drawn):
        left_out.append(f"The page has no room for confusion matrices but those of {found.title_of(focus.cell)}.")
    return own


def _attach(
    drawn: Sequence[tuple[Cell, Matrices]], roots: Mapping[str, Path | None], thumbnails: Thumbnails, room: int
) -> None:
    """Add thumbnails to the matrices within the room left in the page, shared evenly by the cells."""
    room = max(0, min(THUMBNAILS, room - sum(matrix.size for _, matrix in drawn)) - thumbnails.spent)
    for number, (cell, matrix) in enumerate(drawn, start=1):
        thumbnails.budget = thumbnails.spent + room // (len(drawn) - number + 1)
        before = thumbnails.spent
        matrix.attach(roots[cell.key], thumbnails)
        room -= thumbnails.spent - before


def _first(drawn: Sequence[tuple[Cell, Matrices]], cell: Cell) -> list[tuple[Cell, Matrices]]:
    return sorted(drawn, key=lambda entry: entry[0] is not cell)


def _view(found: Run, focus: Focus, cell: Cell, matrix: Matrices) -> dict[str, Any]:
    """Return the script's data for a cell, with the indices of the two networks to show first."""
    networks, students = matrix.content["networks"], cell.students()
    student = focus.student if focus.student in students else next(iter(students), None)
    wanted = [(None if label == TEACHER else student, label) for label in focus.groups]
    places = [i for pair in wanted for i, n in enumerate(networks) if (n["student"], n["label"]) == pair]
    first, second = [0, len(networks) - 1, *places][-2:]
    return {**matrix.content, "title": found.title_of(cell), "first": first, "second": second}


def _page(found: Run, sections: Sequence[Section], content: str) -> str:
    import jinja2

    own = resources.files(__package__)
    style = (own / "report.css").read_text(encoding="utf-8")
    script = "\n".join((own / name).read_text(encoding="utf-8") for name in ("report.js", "matrices.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined)
    template = environment.from_string((own / "report.html").read_text(encoding="utf-8"))
    seeds = sorted({seed for cell in found.cells for seed in cell.seeds()})
    networks = sum(len(cell.networks) for cell in found.cells)
    return template.render(
        title=found.name,
        subtitle=f"{'; '.join(found.title_of(cell) for cell in found.cells)}. {networks} networks, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}.",
        sections=[section for section in sections if section.blocks],
        style=Markup(style),
        script=Markup(script),
        script_hash=Markup(f"sha256-{digest}"),
        data=Markup(content),
        version=__version__,
        date=datetime.date.today().isoformat(),
    )


def _as_script(content: object) -> str:
    """Return the content as JSON that cannot close the script element around it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text
