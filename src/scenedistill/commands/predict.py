"""`scenedistill predict`."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser, build_config
from scenedistill.core.cluster import ClusterConfig, RayCluster, check_cluster
from scenedistill.core.disk import shown_path
from scenedistill.core.errors import UserError
from scenedistill.core.terminal import counted, plain_console
from scenedistill.inference.raster.config import RasterConfig, check_config

if TYPE_CHECKING:
    from scenedistill.inference.model import SceneModel


def parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(description="classify images, folders of images and rasters")
    parser.add_argument("model", type=str, help="a run's folder, or a .safetensors, .onnx or .pt2 file")
    parser.add_argument("inputs", type=str, nargs="+", help="images, folders, patterns such as 'tiles/*.jpg', rasters")
    parser.add_argument("--out", type=str, default="predictions", help="folder for the results")
    parser.add_argument("--embeddings", type=bool, default=False, help="images: also keep the pooled features")
    parser.add_argument(
        "--sheet",
        type=Literal["class", "doubtful", "none"],
        default="class",
        help="images: contact sheet by class, or the least sure first",
    )
    parser.add_argument("--sheet_pages", type=int, default=20, help="images: at most so many pages")
    parser.add_argument(
        "--value_range",
        type=list[float] | None,
        default=None,
        help="images deeper than 8 bits: what becomes black and white, such as [0, 4000]",
    )
    parser.add_argument(
        "--raster",
        type=bool | None,
        default=None,
        help="treat every input as a raster, or none; when not given, those with a georeference",
    )
    parser.add_argument("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="where to compute")
    parser.add_argument(
        "--precision", type=Literal["auto", "bf16", "fp16", "fp32"], default="auto", help="of a .safetensors"
    )
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads of the network")
    parser.add_argument("--trust", type=bool, default=False, help="open a .pt2, which may run any code")
    parser.add_argument("--merge", type=bool, default=False, help="several rasters: also write one map over all")
    parser.add_argument("--ray", type=bool, default=False, help="rasters: spread the work over a Ray cluster")
    parser.add_class_arguments(ClusterConfig, "cluster")
    parser.add_class_arguments(RasterConfig)
    return parser


def command(settings: Namespace, console: Console, text: str) -> int:
    """Run the command; return 0 if anything was classified, else 1."""
    from scenedistill.inference.inputs import find_inputs
    from scenedistill.inference.model import open_model

    config, out = build_config(RasterConfig, settings), Path(settings.out)
    check_config(config)
    ends = settings.value_range
    if ends is not None and (len(ends) != 2 or ends[0] >= ends[1]):
        raise UserError(f"--value_range is {ends}; expected two numbers, the smaller one first, such as [0, 4000].")
    found = find_inputs(settings.inputs, raster=settings.raster, leave_out=out)
    for path in found.points_only:
        line = f"{shown_path(path)} has ground control points alone: taken as one image. gdalwarp makes a map of it"
        console.print(f"{line}; --raster true maps it in pixels.", markup=False, highlight=False)
    opened = {name: settings[name] for name in ("device", "precision", "threads", "trust")}
    workers = build_config(ClusterConfig, settings.cluster, "cluster.")
    check_cluster(workers, "scenedistill predict --help")
    if settings.ray and config.processes > 1:
        raise UserError("--processes are of this machine alone: leave them out with --ray true.")
    if settings.ray and found.images:
        console.print("--ray true is for rasters: images are classified in this process.")
    try:
        with ExitStack() as stack:
            ray = cluster = None
            if settings.ray and found.rasters:
                ray = stack.enter_context(closing(RayCluster(workers, "worker")))
                opened["precision"] = ray.precision(settings.precision, settings.device)
            model = open_model(settings.model, **opened)
            worked = _images(model, found.images, found.twice, out, config, settings, console)
            if not found.rasters:
                return 0 if worked else 1
            from scenedistill.inference.raster.many import map_rasters

            if ray is not None:
                from scenedistill.inference.raster.cluster import RasterCluster

                cluster = stack.enter_context(closing(RasterCluster(model, ray, workers)))
                console.print(f"{counted(cluster.workers, 'worker')} on the cluster")
            results = map_rasters(
                model, found.rasters, out, config, console=console, cluster=cluster, merge=settings.merge
            )
            return 0 if worked or any(any(result.cells.values()) for result in results) else 1
    except RuntimeError as problem:
        if "out of memory" not in str(problem):
            raise
        raise UserError(
            f"The device's memory does not hold a batch of {config.batch_size}. Give a smaller --batch_size; what is "
            "done is kept."
        ) from problem


def _images(
    model: SceneModel,
    images: tuple[Path, ...],
    twice: int,
    out: Path,
    config: RasterConfig,
    settings: Namespace,
    console: Console,
) -> int:
    """Classify the images and return how many were classified."""
    if not images:
        return 0
    from scenedistill.inference.images import ImagesConfig, predict_images

    wanted = ImagesConfig(
        batch_size=config.batch_size,
        embeddings=settings.embeddings,
        sheet=settings.sheet,
        sheet_pages=settings.sheet_pages,
        value_range=tuple(settings.value_range) if settings.value_range else None,
        workers=config.readers,
        restart=config.restart,
    )
    result = predict_images(model, images, out, wanted, console=plain_console(stderr=True))
    console.print(str(replace(result, twice=result.twice + twice)), markup=False, highlight=False)
    written = [file.name for file in result.files if not file.name.endswith((".png", ".files.json"))]
    pages = sum(file.suffix == ".png" for file in result.files)
    sheets = f" and {pages} contact sheet{'s' if pages > 1 else ''}" if pages else ""
    console.print(f"Written to {out}: {', '.join(written)}{sheets}", markup=False, highlight=False)
    return result.images
