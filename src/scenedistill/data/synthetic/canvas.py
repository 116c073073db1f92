"""The canvas of a generated scene, seen from above, with its drawing functions."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array: TypeAlias = NDArray[np.floating[Any]]  # points [..., 2], colours RGB 0..255 [..., 3], masks 0..1 [S, S]

# Colours that a pixel of each material may have. The lists overlap on purpose: a dry meadow looks like soil, a murky
# pond like a winter field, a concrete roof like a road, so that colour by itself says little about the scene.
MATERIALS: dict[str, list[tuple[int, int, int]]] = {
    "grass": [
        (88, 114, 62),
        (112, 126, 78),
        (146, 134, 90),
        (98, 104, 66),
        (66, 98, 56),
        (118, 122, 84),
        (140, 148, 110),
    ],
    "soil": [(150, 118, 84), (174, 146, 110), (126, 96, 72), (198, 174, 134), (112, 94, 80), (162, 106, 78)],
    "sand": [(208, 190, 152), (188, 170, 136), (222, 210, 182), (170, 150, 120), (150, 140, 128)],
    "water": [(38, 62, 84), (52, 90, 100), (66, 94, 86), (92, 104, 90), (32, 50, 64), (84, 120, 130), (46, 78, 112)],
    "paving": [(92, 92, 94), (124, 122, 120), (152, 148, 142), (72, 72, 76), (172, 166, 156), (140, 126, 110)],
    "tree": [(48, 72, 40), (60, 84, 44), (76, 78, 44), (124, 90, 48), (92, 82, 68), (42, 62, 46), (104, 104, 56)],
    "roof": [
        (156, 86, 66),
        (122, 72, 60),
        (106, 102, 100),
        (182, 176, 168),
        (80, 80, 86),
        (206, 202, 196),
        (96, 106, 124),
    ],
    "car": [
        (226, 226, 224),
        (190, 190, 192),
        (54, 54, 58),
        (30, 32, 36),
        (140, 40, 36),
        (44, 62, 110),
        (120, 122, 126),
    ],
}


class Canvas:
    """A square picture of `2 * size` pixels, addressed in scene coordinates that are turned and scaled at random.

    One scene unit is `zoom` times half the picture side; the range from `-reach` to `reach` along both axes covers the
    whole picture. The light, the season and the materials are drawn once for each canvas.
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng = rng
        self.side = 2 * size  # drawn at twice the resolution, halved by the camera: cheap anti-aliasing
        angle, self.zoom = rng.uniform(0, 2 * np.pi), float(np.exp(rng.uniform(np.log(0.82), np.log(1.25))))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self.unit = self.zoom * size  # pixels for one scene unit
        self.turn = turn
        self.reach = 1.45 / self.zoom
        axis = (np.arange(self.side) + 0.5 - size) / self.unit
        x, y = np.meshgrid(axis, axis)
        self.u: Array = (turn[0, 0] * x + turn[1, 0] * y).astype(np.float32)  # scene coordinates of each pixel
        self.v: Array = (turn[0, 1] * x + turn[1, 1] * y).astype(np.float32)
        azimuth = rng.uniform(0, 2 * np.pi)
        self.light = np.array([np.cos(azimuth), np.sin(azimuth)])  # direction of the shadows, in scene coordinates
        self.shadow_length, self.shadow_depth = rng.uniform(0.4, 1.8), rng.uniform(0.4, 0.75)
        self.colours = {name: self.tint(name) for name in MATERIALS}
        self.roofs = np.stack([self.tint("roof") for _ in range(rng.integers(1, 4))])
        self.image = Image.new("RGB", (self.side, self.side))
        self.pen = ImageDraw.Draw(self.image)

    # Chance -------------------------------------------------------------------------------------------------------
    def tint(self, material: str, spread: float = 0.08) -> Array:
        """Draw a random colour of a material, slightly different from the list."""
        choices = MATERIALS[material]
        colour = np.array(choices[self.rng.integers(len(choices))], dtype=np.float64)
        return colour * self.rng.normal(1.0, spread) * self.rng.normal(1.0, spread / 3, 3)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def noise(self, cells: float, octaves: int = 4) -> Array:
        """Fractal noise `[side, side]` with zero mean and unit deviation; `cells` is the number of lumps across."""
        total = np.zeros((1, 1), np.float32)
        counts = [count for octave in range(octaves) if (count := round(cells * 2**octave) + 1) < self.side]
        for octave, count in enumerate(counts):
            total = enlarge(total, count) + self.rng.standard_normal((count, count), np.float32) / 1.7**octave
        total = enlarge(total, self.side)
        total -= total.mean()
        return total / max(float(total.std()), 1e-6)

    def lattice(self, du: float, dv: float, jitter: float = 0.0) -> Array:
        """Points `[K, 2]` of a grid with steps `du`, `dv` that fall near the picture, moved by `jitter` steps."""
        us, vs = np.arange(-self.reach, self.reach, du), np.arange(-self.reach, self.reach, dv)
        points = np.stack(np.meshgrid(us, vs), -1).reshape(-1, 2) + self.rng.uniform(0, 1, 2) * (du, dv)
        points += self.rng.uniform(-jitter, jitter, points.shape) * (du, dv)
        pixels = self.pixels(points)
        near: Array = points[np.all((pixels > -0.15 * self.side) & (pixels < 1.15 * self.side), axis=1)]
        return near

    def where(self, mask: Array, points: Array) -> Array:
        """Return those of the points `[K, 2]` on the mask (points outside the picture take its nearest border)."""
        column, row = np.clip(self.pixels(points).astype(int), 0, self.side - 1).T
        inside: Array = points[mask[row, column] > 0.5]
        return inside

    # Surfaces -----------------------------------------------------------------------------------------------------
    def pixels(self, points: Array) -> Array:
        """Convert scene points `[..., 2]` to pixel positions `[..., 2]`."""
        turned: Array = points @ self.turn.T * self.unit
        return turned + self.side / 2

    def soft(self, distance: Array) -> Array:
        """Mask 0..1 of where a signed distance in scene units is above zero, smooth over about a pixel."""
        mask: Array = np.clip(distance * self.unit + 0.5, 0, 1)
        return mask

    def mask(self, shapes: Array) -> Array:
        """Mask 0 or 1 of the polygons `[K, P, 2]`."""
        sheet = Image.new("L", self.image.size)
        pen = ImageDraw.Draw(sheet)
        for shape in self.pixels(shapes):
            pen.polygon([tuple(point) for point in shape.tolist()], fill=255)
        return np.asarray(sheet, dtype=np.float32) / 255

    def lay(self, colour: Array, where: Array | None = None, grain: float = 0.1, cells: float = 6.0) -> None:
        """Cover the mask (all, without one) with a colour mottled by `grain`; colour may be a picture `[S, S, 3]`."""
        light = 1 + grain * self.noise(cells, 5)
        sheet = Image.fromarray(np.clip(colour * light[..., None], 0, 255).astype(np.uint8))
        self.image.paste(sheet, mask=None if where is None else Image.fromarray((255 * where).astype(np.uint8)))

    def shade(self, where: Array, factor: float | None = None) -> None:
        """Darken the mask as a shadow does: less red than blue."""
        factor = self.shadow_depth if factor is None else factor
        dark = self.image.point([int(i * f) for f in (factor * 0.95, factor, factor * 1.08) for i in range(256)])
        self.image.paste(dark, mask=Image.fromarray((255 * where).astype(np.uint8)))

    # Things -------------------------------------------------------------------------------------------------------
    def polygons(self, shapes: Array, colours: Array, height: float = 0.0) -> None:
        """Draw polygons `[K, P, 2]` in one colour `[3]` or `[K, 3]`, with the shadow of something `height` tall."""
        if len(shapes) == 0:
            return
        if height > 0:
            fall = self.light * height * self.shadow_length
            self.shade(self.mask(np.concatenate([shapes + fall * step for step in (0.35, 0.7, 1.0)])))
        fills = np.broadcast_to(np.clip(colours, 0, 255), (len(shapes), 3)).astype(int).tolist()
        for shape, fill in zip(self.pixels(shapes).tolist(), fills, strict=True):
            self.pen.polygon([tuple(point) for point in shape], fill=tuple(fill))

    def discs(self, centres: Array, radii: Array | float, colours: Array, height: float = 0.0) -> None:
        """Draw round things: centres `[K, 2]`, one radius or `[K]`, one colour or `[K, 3]`."""
        if len(centres) == 0:
            return
        if height > 0:
            fall = self.light * height * self.shadow_length
            sheet = Image.new("L", self.image.size)
            pen = ImageDraw.Draw(sheet)
            for step in (0.5, 1.0):
                for box in self._boxes(centres + fall * step, radii):
                    pen.ellipse(box, fill=255)
            self.shade(np.asarray(sheet, dtype=np.float32) / 255)
        fills = np.broadcast_to(np.clip(colours, 0, 255), (len(centres), 3)).astype(int).tolist()
        for box, fill in zip(self._boxes(centres, radii), fills, strict=True):
            self.pen.ellipse(box, fill=tuple(fill))

    def blocks(self, centres: Array, sizes: Array, angles: Array | float, colours: Array, height: float = 0.0,
               ridge: bool = False) -> None:  # fmt: skip
        """Draw rectangles: centres `[K, 2]`, sizes `[K, 2]` along and across, angles in radians; `ridge` for roofs."""
        shapes = rectangles(centres, sizes, angles)
        self.polygons(shapes, colours, height)
        if ridge:  # the slope that faces away from the light is darker
            ends = (shapes[:, [0, 1]] + shapes[:, [3, 2]]) / 2
            away = ((shapes[:, 0] - shapes[:, 3]) @ self.light > 0)[:, None, None]
            dark = np.where(away, shapes[:, [0, 1]], shapes[:, [3, 2]])
            self.polygons(np.concatenate([dark, ends[:, ::-1]], axis=1), np.asarray(colours) * 0.76)

    def road(self, points: Array, width: float, colour: Array, dashes: Array | None = None) -> None:
        """Draw a band along the points `[K, 2]`, with a broken centre line in the colour `dashes`."""
        path = [tuple(point) for point in self.pixels(points).tolist()]
        self.pen.line(path, fill=ink(colour), width=max(1, round(width * self.unit)), joint="curve")
        if dashes is not None:
            steps = np.linspace(0, len(points) - 1, int(2.4 / max(width, 0.06)) * 2 + 2)
            dots = np.stack([np.interp(steps, np.arange(len(points)), points[:, i]) for i in (0, 1)], -1)
            for start, end in zip(self.pixels(dots[:-1:2]).tolist(), self.pixels(dots[1::2]).tolist(), strict=False):
                self.pen.line([*start, *end], fill=ink(dashes), width=max(1, round(0.05 * width * self.unit)))

    def trees(self, centres: Array, radius: float, spread: float = 0.25, shadow: float = 1.2) -> None:
        """Draw crowns lit from one side, of about the given radius."""
        radii = radius * np.exp(self.rng.normal(0, spread, len(centres)))
        colours = self.colours["tree"] * self.rng.normal(1.0, 0.13, (len(centres), 1))
        self.discs(centres, radii, colours * 0.8, height=shadow * radius)
        self.discs(centres - 0.28 * radii[:, None] * self.light, 0.62 * radii, colours * 1.22)

    def _boxes(self, centres: Array, radii: Array | float) -> list[list[float]]:
        middle, reach = self.pixels(centres), np.broadcast_to(np.asarray(radii) * self.unit, len(centres))[:, None]
        return np.concatenate([middle - reach, middle + reach], axis=1).tolist()  # type: ignore[no-any-return]


def enlarge(grid: Array, side: int) -> Array:
    """Smoothly enlarge a grid `[k, k]` to `[side, side]`."""
    sheet = Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)
    return np.array(sheet, dtype=np.float32)


def ink(colour: Array) -> tuple[int, int, int]:
    """Convert a colour to Pillow's integers, clipped to 0..255."""
    red, green, blue = np.clip(colour, 0, 255).astype(int).tolist()
    return red, green, blue


def rectangles(centres: Array, sizes: Array, angles: Array | float) -> Array:
    """Corners `[K, 4, 2]` of rectangles; corners 0-1 and 3-2 run along the first size."""
    half = np.broadcast_to(np.asarray(sizes, dtype=np.float64) / 2, (len(centres), 2))[:, None, :]
    corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    angle = np.broadcast_to(np.asarray(angles, dtype=np.float64), len(centres))
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    turned = np.stack(
        [corners[..., 0] * cos - corners[..., 1] * sin, corners[..., 0] * sin + corners[..., 1] * cos], -1
    )
    corners_of: Array = centres[:, None, :] + turned
    return corners_of
