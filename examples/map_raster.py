"""Map a raster of any size with a trained student, and read the map.

pip install 'scenedistill[use]'
python examples/map_raster.py MODEL RASTER OUT

MODEL is a run's folder, or a .safetensors or .onnx file.
"""

import argparse
from pathlib import Path

import rasterio
from rich.console import Console

from scenedistill.inference.model import open_model
from scenedistill.inference.raster.config import RasterConfig
from scenedistill.inference.raster.pipeline import map_raster

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("raster")
parser.add_argument("out", type=Path)
parser.add_argument("--window", type=float, help="side in pixels of what is one scene; the network's own by default")
parser.add_argument("--overlap", type=float, default=0.5, help="share of a window that the next one shows again")
args = parser.parse_args()

model = open_model(args.model)
config = RasterConfig(window=args.window, overlap=args.overlap, regions=True)
# windows are read, classified and saved one batch at a time; after an interruption, the same call resumes
result = map_raster(model, args.raster, args.out, config, console=Console())
print(f"{result.windows} windows, {result.megapixels:.1f} megapixels in {result.seconds:.1f} s")
for name, cells in sorted(result.cells.items(), key=lambda item: -item[1]):
    print(f"{cells:8d} cells of {name}")

# the class map covers the raster; polygons with the probabilities are in result.polygons, for QGIS
with rasterio.open(result.classes) as classes:
    print(f"{result.classes}: {classes.width} x {classes.height} cells of {classes.res[0]:g} units, {classes.crs}")
