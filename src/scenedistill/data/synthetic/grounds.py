"""Backgrounds of generated scenes; several of them are other classes in a sparser or smaller form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from scenedistill.data.synthetic.canvas import Array, Canvas


def surroundings(c: Canvas) -> None:
    """Draw a random ground, often two kinds that meet along a ragged or a straight border."""
    kinds: list[Callable[[Canvas], None]] = [meadow, woods, fields, houses, yard]
    weights = np.array([0.26, 0.2, 0.2, 0.2, 0.14])
    kinds[c.rng.choice(5, p=weights)](c)
    if c.chance(0.3):
        first = c.image.copy()
        kinds[c.rng.choice(5, p=weights)](c)
        edge = c.rng.uniform(0, 0.25) * c.noise(2) + c.u * c.rng.normal() + c.v * c.rng.normal() + c.rng.normal(0, 0.3)
        c.image.paste(first, mask=Image.fromarray((255 * c.soft(edge)).astype(np.uint8)))
    if c.chance(0.12):
        pond = c.soft(0.15 * c.noise(2) - np.hypot(c.u - c.rng.normal(), c.v - c.rng.normal()) + 0.25)
        water(c, pond)
    if c.chance(0.15):
        a, b = c.rng.uniform(-1.2, 1.2, 2)
        c.road(np.array([[-c.reach, a], [0, (a + b) / 2 + c.rng.normal(0, 0.2)], [c.reach, b]]), 0.08, c.tint("paving"))


def meadow(c: Canvas) -> None:
    ground = c.colours[c.rng.choice(["grass", "grass", "soil"])]
    c.lay(ground, grain=c.rng.uniform(0.05, 0.14), cells=c.rng.uniform(2, 10))
    c.lay(c.colours["soil"], c.soft(0.05 * (c.noise(3) - 1.0)), grain=0.1)
    spots = c.where(c.soft(c.noise(2, 2)), c.lattice(0.3, 0.3, 0.5))
    c.trees(spots[c.rng.random(len(spots)) < c.rng.uniform(0, 0.6)], c.rng.uniform(0.04, 0.09))


def woods(c: Canvas, cover: float | None = None) -> None:
    """Draw tree crowns at random places; `cover` 0..1 is the share of the ground under trees."""
    cover = c.rng.uniform(0.45, 0.95) if cover is None else cover
    step = c.rng.uniform(0.1, 0.2)
    c.lay(c.colours[c.rng.choice(["grass", "soil"])], grain=0.1, cells=8)
    stand = c.soft(c.noise(c.rng.uniform(1.2, 3.5), 3) + 2.2 * (2 * cover - 1) ** 3 + 1.6 * (cover - 0.5))
    c.lay(c.colours["tree"] * 0.7, stand, grain=0.2, cells=20)
    c.trees(c.where(stand, c.lattice(step, step, 0.5)), step * c.rng.uniform(0.5, 0.62), shadow=0.8)


def fields(c: Canvas, splits: int | None = None) -> None:
    """Draw a patchwork of plots, each with its own crop and direction of tillage."""
    plots = [np.array([[-2.2, -2.2], [2.2, -2.2], [2.2, 2.2], [-2.2, 2.2]])]
    for _ in range(int(c.rng.integers(4, 16)) if splits is None else splits):
        sizes = [np.abs((p[2] - p[0])[0] * (p[2] - p[0])[1]) for p in plots]
        a, b, d, e = plots.pop(int(np.argmax(sizes)))
        s, t = c.rng.uniform(0.3, 0.7) + c.rng.uniform(-0.06, 0.06, 2)
        if np.linalg.norm(b - a) < np.linalg.norm(e - a):
            a, b, d, e = b, d, e, a
        cut, end = a + s * (b - a), e + t * (d - e)
        plots += [np.array([a, cut, end, e]), np.array([cut, b, d, end])]
    sheet = np.zeros((c.side, c.side), np.uint8)
    for number, plot in enumerate(plots):
        sheet[c.mask(plot[None]) > 0.5] = number
    crops = [c.colours["grass"], c.colours["soil"], c.tint("grass"), c.tint("soil"), c.tint("tree") * 1.2]
    colours = np.array([crops[c.rng.integers(len(crops))] * c.rng.normal(1, 0.08) for _ in plots])
    angles = c.rng.choice([0.0, np.pi / 2], len(plots)) + c.rng.normal(0, 0.06, len(plots))
    rates, depths = c.rng.uniform(8, 26, len(plots)), c.rng.uniform(0, 0.16, len(plots))
    wave = np.sin(
        2 * np.pi / 2 * rates[sheet] * (c.u * np.cos(angles)[sheet] + c.v * np.sin(angles)[sheet]) + c.noise(2)
    )
    c.lay(colours[sheet] * (1 + depths[sheet] * wave)[..., None], grain=0.06, cells=5)
    for plot in plots:
        if c.chance(0.4):
            c.road(plot[:2], c.rng.uniform(0.02, 0.05), c.colours["soil"] * 1.1)
        if c.chance(0.15):
            c.trees(np.linspace(plot[1], plot[2], 18), 0.05)


def houses(c: Canvas, share: float | None = None) -> None:
    """Draw streets with small houses on both sides, gardens and trees; `share` of the plots are built on."""
    share = c.rng.uniform(0.3, 0.8) if share is None else share
    c.lay(c.colours["grass"], grain=0.14, cells=14)
    row, plot = c.rng.uniform(0.5, 0.8), c.rng.uniform(0.2, 0.34)
    curve = (c.rng.uniform(0, 0.22), c.rng.uniform(0.8, 2.2), c.rng.uniform(0, 6))
    along = np.linspace(-c.reach, c.reach, 24)
    start = -c.reach + c.rng.uniform(0, row)
    streets = np.arange(start, c.reach, row)
    width = c.rng.uniform(0.06, 0.11)
    for u in (c.rng.uniform(-0.8, 0.8),) if c.chance(0.6) else ():
        c.road(np.array([[u, -c.reach], [u, c.reach]]), width, c.colours["paving"])
    for v in streets:
        c.road(bend(np.stack([along, np.full_like(along, v)], -1), *curve), width, c.colours["paving"])
    us = np.arange(-c.reach, c.reach, plot)
    spots = np.array([(u, v + side * row * 0.25) for v in streets for u in us for side in (-1, 1)])
    spots = spots[c.rng.random(len(spots)) < share] + c.rng.normal(0, 0.02, 2)
    slope = np.arctan(curve[0] * curve[1] * np.cos(curve[1] * spots[:, 0] + curve[2]))
    sizes = plot * c.rng.uniform(0.42, 0.72, (len(spots), 2))
    turned = slope + c.rng.choice([0, np.pi / 2], len(spots)) + c.rng.normal(0, 0.06, len(spots))
    roofs = c.roofs[c.rng.integers(len(c.roofs), size=len(spots))] * c.rng.normal(1, 0.08, (len(spots), 1))
    gardens = c.lattice(0.2, 0.2, 0.5)
    c.trees(gardens[c.rng.random(len(gardens)) < c.rng.uniform(0.05, 0.5)], c.rng.uniform(0.035, 0.07))
    c.blocks(bend(spots, *curve), sizes, turned, roofs, height=c.rng.uniform(0.04, 0.09), ridge=c.chance(0.75))


def bend(points: Array, height: float, rate: float, phase: float) -> Array:
    """Shift the second coordinate of points by a sine of the first, which bends straight streets."""
    shift: Array = np.stack([np.zeros(points.shape[:-1]), height * np.sin(rate * points[..., 0] + phase)], -1)
    return points + shift


def yard(c: Canvas) -> None:
    """Draw paved ground with patches, a few sheds and some green."""
    c.lay(c.colours[c.rng.choice(["paving", "paving", "soil"])], grain=0.07, cells=6)
    c.lay(c.colours["grass"], c.soft(c.noise(1.5, 3) - 0.7), grain=0.12)
    spots = c.lattice(0.6, 0.6, 0.4)
    spots = spots[c.rng.random(len(spots)) < 0.3]
    c.blocks(spots, c.rng.uniform(0.12, 0.36, (len(spots), 2)), c.rng.choice([0, 0.1]), c.tint("roof"), 0.08)


def water(c: Canvas, where: Array) -> None:
    """Draw water with faint waves over the mask."""
    heading = c.rng.uniform(0, np.pi)
    waves = np.sin(60 * (c.u * np.cos(heading) + c.v * np.sin(heading)) + 2 * c.noise(4, 3))
    c.lay(c.colours["water"] * (1 + c.rng.uniform(0, 0.06) * waves)[..., None], where, grain=0.07, cells=2)


def cars(c: Canvas, spots: Array, angles: Array | float, length: float) -> None:
    paint = np.array([c.tint("car") for _ in range(8)])[c.rng.integers(8, size=len(spots))]
    c.blocks(spots, np.array([length, 0.46 * length]), angles, paint, height=0.15 * length)
