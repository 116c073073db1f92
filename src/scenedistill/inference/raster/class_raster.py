"""Write the class and confidence of each cell to a Cloud-Optimised GeoTIFF."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import tifffile

from scenedistill.inference.raster.style import class_colours
from scenedistill.inference.raster.write import Place, write_error


class ClassRaster:
    """Writer for a GeoTIFF with one pixel per cell: band 1 is the class, with colours and names, band 2 the confidence.

    `close` makes the file cloud-optimised. Cells without data have the value `nodata` in both bands. The confidence is
    stored as an integer with a scale that GDAL and QGIS apply.

    Args:
        path: output file; the sidecar file `.aux.xml` contains the class names, which a GeoTIFF cannot store.
        scratch: folder for the unfinished file.
        place: position of the cells on the map.
        classes: names of the K classes.
        tags: further metadata.
    """

    def __init__(
        self, path: Path, scratch: Path, place: Place, classes: Sequence[str], tags: Mapping[str, str]
    ) -> None:
        import rasterio

        self.path, self.place, self.classes = path, place, classes
        small = len(classes) <= 250
        self.kind = "uint8" if small else "uint16"
        self.nodata = int(np.iinfo(self.kind).max)
        self.steps = 250 if small else 10_000  # integer value of a confidence of 1
        rows, columns = place.grid.cells
        self._draft = scratch / "classes.tif"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            self._file = rasterio.open(
                self._draft,
                "w",
                driver="GTiff",
                width=columns,
                height=rows,
                count=2,
                dtype=self.kind,
                nodata=self.nodata,
                crs=place.crs,
                transform=place.cell_transform,
                BIGTIFF="IF_SAFER",
            )
        self._file.write_colormap(1, dict(enumerate((*colour, 255) for colour in class_colours(len(classes)))))
        self._file.descriptions = ("class", "confidence")
        self._file.scales = (1.0, 1 / self.steps)
        self._file.update_tags(classes=json.dumps(list(classes), ensure_ascii=False), **tags)

    def add(self, row: int, labels: np.ndarray, confidence: np.ndarray, valid: np.ndarray) -> None:
        """Write a row of cells: class indices int64, confidence 0..1 and a bool mask of data, `[cells across]` each."""
        from rasterio.windows import Window

        level = np.rint(confidence * self.steps)
        bands = np.where(valid, np.stack([labels, level]), self.nodata).astype(self.kind)
        try:
            self._file.write(bands[:, None, :], window=Window(0, row, bands.shape[1], 1))
        except Exception as problem:  # not all errors of GDAL have a public base class
            raise write_error(self.path, problem) from problem

    def close(self) -> None:
        """Convert the file to a Cloud-Optimised GeoTIFF and write the class names."""
        import rasterio.shutil

        try:
            self._file.close()
            rasterio.shutil.copy(
                str(self._draft), str(self.path), driver="COG", COMPRESS="DEFLATE", OVERVIEW_RESAMPLING="NEAREST"
            )
        except Exception as problem:
            raise write_error(self.path, problem) from problem
        self._draft.unlink()
        with tifffile.TiffFile(self.path, mode="r+") as file:
            for page in file.pages:  # GDAL declares the second band of a palette image as alpha
                if isinstance(page, tifffile.TiffPage):
                    page.tags["ExtraSamples"].overwrite(0)
        names = "".join(f"<Category>{escape(name)}</Category>" for name in self.classes)
        band = f'<PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand>'
        Path(f"{self.path}.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>\n", encoding="utf-8")
