"""The twelve classes of generated scenes, which differ by their objects and layout and hardly by colour."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scenedistill.data.synthetic.canvas import Array, Canvas
from scenedistill.data.synthetic.grounds import cars, fields, houses, meadow, surroundings, water, woods, yard

PALE = np.array([225.0, 224.0, 215.0])  # paint, foam, boats, tanks


def beach(c: Canvas) -> None:
    surroundings(c)
    bow, rate, phase = c.rng.uniform(0.02, 0.2), c.rng.uniform(0.8, 2.5), c.rng.uniform(0, 6)
    coast = c.v - bow * np.sin(rate * c.u + phase) - 0.03 * c.noise(3) - c.rng.uniform(-0.35, 0.3)
    width = c.rng.uniform(0.14, 0.5)
    ragged = c.rng.uniform(0.01, 0.05) * c.noise(5)
    c.lay(c.colours["sand"], c.soft(coast + width + ragged), grain=0.05, cells=10)
    people = c.where(c.soft(coast + width) * c.soft(-coast - 0.06), c.lattice(0.1, 0.1, 0.5))
    people = people[c.rng.random(len(people)) < c.rng.choice([0, 0, 0.12, 0.3])]
    c.discs(people, 0.022, np.array([c.tint("car") for _ in people]).reshape(-1, 3), height=0.03)
    c.shade(c.soft(coast + 0.07 + 0.5 * ragged), 0.8)  # wet sand
    water(c, c.soft(coast))
    for line in range(int(c.rng.integers(2, 5))):  # surf
        away = coast - line * c.rng.uniform(0.08, 0.18) - 0.02 * c.noise(7)
        broken = c.soft(c.noise(5, 3) + (1.5 if line == 0 else 0.2))
        c.lay(PALE, c.soft(c.rng.uniform(0.012, 0.04) - np.abs(away)) * broken * c.rng.uniform(0.7, 1), grain=0.05)


def farmland(c: Canvas) -> None:
    fields(c)
    if c.chance(0.3):  # centre-pivot irrigation
        c.lay(c.tint("grass"), c.soft(c.rng.uniform(0.4, 0.8) - np.hypot(c.u - c.rng.normal(0, 0.5), c.v)), grain=0.07)
    if c.chance(0.5):
        a, b = c.rng.uniform(-1, 1, 2)
        c.road(np.array([[-c.reach, a], [c.reach, b]]), c.rng.uniform(0.03, 0.1), c.colours["paving"])
    if c.chance(0.45):  # a farm
        spot = c.rng.uniform(-0.7, 0.7, 2) + c.rng.normal(0, 0.14, (int(c.rng.integers(2, 7)), 2))
        c.trees(spot + c.rng.normal(0, 0.15, spot.shape), 0.07)
        c.blocks(spot, c.rng.uniform(0.08, 0.25, spot.shape), c.rng.uniform(0, 3), c.roofs[0], 0.07, ridge=True)


def forest(c: Canvas) -> None:
    woods(c, c.rng.uniform(0.72, 1.0))
    if c.chance(0.4):
        along = np.linspace(-c.reach, c.reach, 20)
        path = np.stack([along, c.rng.uniform(-0.7, 0.7) + 0.2 * np.sin(2 * along + c.rng.uniform(0, 6))], -1)
        c.road(path, c.rng.uniform(0.03, 0.08), c.colours[c.rng.choice(["paving", "soil", "water"])])
    if c.chance(0.2):
        spot = c.rng.uniform(-0.8, 0.8, 2) + c.rng.normal(0, 0.12, (int(c.rng.integers(1, 4)), 2))
        c.blocks(spot, c.rng.uniform(0.1, 0.2, spot.shape), 0.3, c.roofs[0], 0.07, ridge=True)


def harbour(c: Canvas) -> None:
    surroundings(c)
    shore = c.rng.uniform(-0.9, -0.2)
    water(c, c.soft(c.v - shore))
    c.road(np.array([[-c.reach, shore], [c.reach, shore]]), c.rng.uniform(0.06, 0.25), c.colours["paving"])
    if c.chance(0.3):  # ships along the quay instead of a marina
        count = int(c.rng.integers(3, 6))
        spots = np.stack([np.linspace(-1.1, 1.1, count), shore + c.rng.uniform(0.25, 0.4, count)], -1)
        boats(c, spots, np.zeros(count), c.rng.uniform(0.45, 0.7), deck=True)
        cranes = np.stack([c.rng.uniform(-1, 1, 5), np.full(5, shore + 0.05)], -1)
        c.blocks(cranes, np.array([0.05, 0.3]), 0.0, c.tint("car"), height=0.1)
        return
    gap, length = c.rng.uniform(0.45, 0.75), c.rng.uniform(0.6, 1.6)
    size = c.rng.uniform(0.15, 0.26)
    for u in np.arange(-c.reach + c.rng.uniform(0, gap), c.reach, gap):
        if c.chance(0.12):
            continue
        end = shore + length * c.rng.uniform(0.8, 1.1)
        berths = np.arange(shore + 0.2, end, size * c.rng.uniform(0.45, 0.6))
        berths = berths[c.rng.random(len(berths)) < c.rng.uniform(0.5, 1)]
        for side in (-1, 1):
            spots = np.stack([np.full_like(berths, u + side * (0.56 * size + 0.02)), berths], -1)
            boats(c, spots, np.where(c.rng.random(len(spots)) < 0.8, 0, np.pi) + (np.pi if side < 0 else 0), size)
        c.polygons(np.array([[[u - 0.025, shore], [u + 0.025, shore], [u + 0.025, end], [u - 0.025, end]]]),
                   c.colours["paving"] * 1.15, height=0.03)  # fmt: skip


def boats(c: Canvas, spots: Array, angles: Array, size: float, deck: bool = False) -> None:
    hull = np.array([[-0.5, -0.15], [0.25, -0.15], [0.5, 0.0], [0.25, 0.15], [-0.5, 0.15]]) * size
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    lengths = c.rng.uniform(0.7, 1.05, (len(spots), 1, 1))
    shapes = np.stack([hull[:, 0] * cos - hull[:, 1] * sin, hull[:, 0] * sin + hull[:, 1] * cos], -1) * lengths
    paint = np.array([c.tint("car" if c.chance(0.4) else "roof") for _ in spots]) if deck else PALE * c.rng.normal(
        0.93, 0.08, (len(spots), 1))  # fmt: skip
    c.polygons(spots[:, None] + shapes, paint, height=0.05)
    for part in (-0.25, -0.05, 0.12) if deck else (-0.12,):
        places = spots + part * size * np.concatenate([cos, sin], axis=1)
        c.blocks(places, np.array([0.16, 0.2 if deck else 0.12]) * size, angles, c.tint("roof" if deck else "car"))


def industrial(c: Canvas) -> None:
    yard(c)
    angle, step = c.rng.normal(0, 0.1), c.rng.uniform(0.7, 1.15)
    spots = c.lattice(step, step * c.rng.uniform(0.6, 0.9), 0.12)
    spots = spots[c.rng.random(len(spots)) < c.rng.uniform(0.75, 1)]
    sizes = step * c.rng.uniform((0.6, 0.4), (0.95, 0.65), (len(spots), 2))
    roofs = c.roofs[c.rng.integers(len(c.roofs), size=len(spots))] * c.rng.normal(1.05, 0.07, (len(spots), 1))
    for u in c.lattice(step, 9.0)[:, 0]:
        c.road(np.array([[u, -c.reach], [u, c.reach]]), 0.08, c.colours["paving"] * 0.9)
    vehicles = c.lattice(0.12, 0.16, 0.3)
    cars(c, vehicles[c.rng.random(len(vehicles)) < c.rng.uniform(0, 0.15)], angle, 0.09)
    c.blocks(spots, sizes, angle, roofs, height=c.rng.uniform(0.06, 0.16))
    for spot, size, roof in zip(spots, sizes, roofs, strict=True):  # skylights or ridges across each roof
        bars = int(c.rng.integers(0, 7))
        across = np.stack([np.linspace(-0.4, 0.4, bars) * size[0], np.zeros(bars)], -1)
        c.blocks(spot + across, size * (0.05, 0.85), angle, roof * c.rng.choice([0.8, 1.2]))
    c.trees(c.lattice(0.5, 0.5, 0.5)[:: int(c.rng.integers(2, 6))], 0.06)


def intersection(c: Canvas) -> None:
    surroundings(c)
    middle = c.rng.uniform(-0.3, 0.3, 2)
    arms = int(c.rng.choice([3, 4, 4, 4, 5]))
    turns = np.arange(arms) * 2 * np.pi / arms + c.rng.normal(0, 0.14, arms)
    if arms == 3:
        turns = np.array([0, np.pi, c.rng.uniform(1.1, 2.0)])
    width, paving = c.rng.uniform(0.2, 0.4), c.colours["paving"]
    ring = c.chance(0.4)
    for turn in turns:
        way = np.array([np.cos(turn), np.sin(turn)])
        path = middle + np.linspace(0, 2.4, 12)[:, None] * way
        c.road(path, width * 1.25, paving * 1.15 if c.chance(0.5) else c.colours["soil"])
    for turn in turns:
        way = np.array([np.cos(turn), np.sin(turn)])
        wide = width * (1 if turn == turns[0] else c.rng.uniform(0.65, 1.0))
        c.road(middle + np.linspace(0, 2.4, 12)[:, None] * way, wide, paving, dashes=PALE)
        places = c.rng.uniform(0.45, 2, int(c.rng.integers(0, 6)))[:, None] * way
        side = np.array([-way[1], way[0]]) * wide * 0.25
        cars(c, middle + places + side * c.rng.choice([-1, 1], (len(places), 1)), turn, 0.12)
        if c.chance(0.5) and not ring:  # zebra crossing
            bars = middle + way * width * 1.0 + np.linspace(-0.42, 0.42, 6)[:, None] * side * 4
            c.blocks(bars, np.array([0.1, 0.03]), turn, PALE)
    radius = width * c.rng.uniform(0.9, 1.7) if ring else width * 0.62
    c.discs(middle[None], radius * 1.05, paving)
    if ring:
        c.discs(middle[None], radius * 0.52, c.colours["grass"])
        c.trees(middle + c.rng.normal(0, radius * 0.2, (int(c.rng.integers(0, 5)), 2)), 0.06)


def orchard(c: Canvas) -> None:
    if c.chance(0.5):
        surroundings(c)
    else:
        meadow(c)
    angle, cut = c.rng.choice([0, 0, 0.3]), c.rng.uniform(0.15, 1.2)
    du = c.rng.uniform(0.15, 0.27)
    dv = du * c.rng.uniform(1.0, 1.5)
    plot = c.mask(np.array([[[-2, -2], [2, -2], [2, cut], [-2, cut + angle]]]))
    under = c.colours[c.rng.choice(["grass", "soil"])] * (1 + 0.1 * np.sin(2 * np.pi * c.v / dv))[..., None]
    c.lay(under, plot, grain=0.08, cells=8)
    if c.chance(0.4):
        u = c.rng.uniform(-0.6, 0.6)
        c.road(np.array([[u, -2], [u + angle, cut]]), 0.1, c.colours["soil"] * 1.15)
    rows = c.where(plot, c.lattice(du, dv, c.rng.uniform(0.02, 0.12)))
    c.trees(rows[c.rng.random(len(rows)) < c.rng.uniform(0.85, 1)], du * c.rng.uniform(0.3, 0.46), spread=0.12)


def parking_lot(c: Canvas) -> None:
    surroundings(c)
    low, high = -c.rng.uniform(0.7, 1.8, 2), c.rng.uniform(0.7, 1.8, 2)
    lot = c.mask(np.array([[low, [high[0], low[1]], high, [low[0], high[1]]]]))
    c.lay(c.colours["paving"], lot, grain=0.06, cells=6)
    length = c.rng.uniform(0.11, 0.17)
    bay, aisle = 0.62 * length, length * c.rng.uniform(1.2, 1.8)
    double, filled, slant = c.chance(0.7), c.rng.uniform(0.25, 0.95), c.rng.choice([0.0, 0.0, 0.35])
    v = low[1] + 0.6 * length
    while v < high[1] - 0.5 * length:
        us = np.arange(low[0] + bay, high[0] - bay, bay)
        for shift in (0.0, 1.08 * length) if double else (0.0,):
            if v + shift < high[1] - 0.4 * length:
                row = np.stack([us, np.full_like(us, v + shift)], -1)
                c.blocks(row + np.array([bay / 2, 0]), np.array([length, 0.012]), np.pi / 2 + slant, PALE * 0.95)
                spots = row[c.rng.random(len(row)) < filled * c.rng.uniform(0.7, 1.1)]
                cars(c, spots + c.rng.normal(0, 0.006, spots.shape), np.pi / 2 + slant, length * 0.9)
        if c.chance(0.3):
            c.trees(np.stack([us[::5], np.full_like(us[::5], v + 0.55 * length)], -1), 0.06)
        v += length * (2.08 if double else 1.0) + aisle
    if c.chance(0.35):  # the shop
        c.blocks(np.array([[0.0, high[1]]]), np.array([c.rng.uniform(0.8, 2), c.rng.uniform(0.3, 0.8)]), 0.0,
                 c.tint("roof"), height=0.1)  # fmt: skip


def residential(c: Canvas) -> None:
    houses(c, c.rng.uniform(0.72, 1.0))


def river(c: Canvas) -> None:
    surroundings(c)
    bow, rate, phase = c.rng.uniform(0.05, 0.45), c.rng.uniform(1, 3), c.rng.uniform(0, 6)
    course = c.v - bow * np.sin(rate * c.u + phase) - 0.04 * c.noise(3) - c.rng.uniform(-0.3, 0.3)
    width = c.rng.uniform(0.1, 0.36) * (1 + 0.2 * np.sin(c.rng.uniform(1, 4) * c.u + phase))
    bank = c.rng.uniform(0.02, 0.16) * (1 + 0.5 * c.noise(3))
    c.lay(
        c.colours[c.rng.choice(["soil", "sand", "tree", "paving"])], c.soft(width + bank - np.abs(course)), grain=0.12
    )
    water(c, c.soft(width - np.abs(course)))
    if c.chance(0.3):  # sand banks or islands
        c.lay(c.colours["sand"], c.soft(0.04 * (c.noise(4) - 1.2)) * c.soft(width - np.abs(course)), grain=0.08)
    if c.chance(0.35):
        u, skew = c.rng.uniform(-0.7, 0.7), c.rng.normal(0, 0.3)
        c.road(
            np.array([[u - skew, -c.reach], [u + skew, c.reach]]), c.rng.uniform(0.06, 0.16), c.colours["paving"] * 1.1
        )


def runway(c: Canvas) -> None:
    surroundings(c)
    offset, width = c.rng.uniform(-0.4, 0.3), c.rng.uniform(0.16, 0.4)
    verge = width * c.rng.uniform(1.2, 2.5)
    c.lay(c.colours["grass"], c.soft(verge - np.abs(c.v - offset)), grain=0.07, cells=8)
    paving = c.colours["paving"]
    end = c.rng.uniform(-1.0, 0.2) if c.chance(0.55) else -c.reach - 1
    beside = offset + verge * c.rng.uniform(0.9, 1.2)
    if c.chance(0.65):  # taxiway with its links
        c.road(np.array([[-c.reach - 1, beside], [c.reach + 1, beside]]), width * 0.4, paving * 1.08)
        for u in c.rng.uniform(-1.2, 1.2, int(c.rng.integers(1, 4))):
            lean = c.rng.choice([0.0, 0.4])
            c.road(np.array([[u, offset], [u + lean, beside]]), width * 0.35, paving * 1.08)
    c.road(np.array([[end, offset], [c.reach + 1, offset]]), width, paving)
    dashes = np.arange(end + 0.45, c.reach + 1, 0.22)
    c.blocks(np.stack([dashes, np.full_like(dashes, offset)], -1), np.array([0.12, 0.025]), 0.0, PALE)
    keys = np.stack([np.full(8, end + 0.18), offset + np.linspace(-0.4, 0.4, 8) * width], -1)
    c.blocks(keys, np.array([0.2, 0.05 * width]), 0.0, PALE)
    for edge in (-0.47, 0.47):
        c.road(np.array([[end, offset + edge * width], [c.reach, offset + edge * width]]), 0.012, PALE)
    marks = np.stack([c.rng.uniform(-1, 1, 14), offset + c.rng.normal(0, 0.05 * width, 14)], -1)
    c.blocks(marks, np.array([0.35, 0.012]), 0.0, paving * 0.8)  # rubber
    for _ in range(int(c.rng.integers(0, 3))):
        plane(c, np.array([c.rng.uniform(-0.8, 0.8), c.rng.choice([offset, beside, beside])]), c.rng.uniform(0.2, 0.36))


def plane(c: Canvas, spot: Array, size: float) -> None:
    outline = [[-0.5, -0.03], [-0.5, -0.18], [-0.4, -0.18], [-0.3, -0.05], [-0.05, -0.06], [-0.15, -0.5], [-0.02, -0.5],
               [0.18, -0.06], [0.42, -0.05], [0.5, 0]]  # fmt: skip
    half = np.array(outline)
    shape = np.concatenate([half, half[::-1] * (1, -1)]) * size * (c.rng.choice([-1, 1]), 1)
    c.polygons((spot + shape)[None], PALE, height=0.06)


def storage_tanks(c: Canvas) -> None:
    (surroundings if c.chance(0.6) else yard)(c)
    step = c.rng.uniform(0.42, 0.95)
    floor = c.colours[c.rng.choice(["paving", "soil", "grass"])]
    spots = c.lattice(step, step * c.rng.uniform(0.9, 1.2), c.rng.choice([0.02, 0.15]))
    spots = spots[np.hypot(spots[:, 0], spots[:, 1]) < c.rng.uniform(1.1, 2.4)]
    spots = spots[c.rng.random(len(spots)) < c.rng.uniform(0.6, 1)] if len(spots) > 3 else spots
    c.blocks(spots, np.array([step, step]) * 1.12, 0.0, floor)
    c.blocks(spots, np.array([step, step]) * 0.94, 0.0, floor * 0.9)  # each tank stands in its bund
    for spot in spots[:: int(c.rng.integers(1, 4))]:
        c.road(spot + np.array([[0, 0], [step, 0], [step, step]]), 0.02, PALE * 0.8)  # pipes
    radii = step * c.rng.uniform(0.27, 0.43) * c.rng.choice([1.0, 1.0, 0.6], len(spots))
    shell = c.tint("roof") if c.chance(0.4) else PALE * c.rng.uniform(0.75, 1)
    c.discs(spots, radii, shell * 0.72, height=c.rng.uniform(0.08, 0.2))
    c.discs(spots - 0.06 * radii[:, None] * c.light, radii * 0.93, shell * c.rng.normal(1, 0.05, (len(spots), 1)))
    if c.chance(0.5):  # floating roofs lie deeper, with the shadow of the rim on them
        c.discs(spots, radii * 0.8, shell * 0.6)
        c.discs(spots + 0.12 * radii[:, None] * c.light, radii * 0.7, shell * 0.86)
    else:
        c.discs(spots, radii * 0.1, shell * 0.7)


SCENES: dict[str, Callable[[Canvas], None]] = {
    "beach": beach,
    "farmland": farmland,
    "forest": forest,
    "harbour": harbour,
    "industrial": industrial,
    "intersection": intersection,
    "orchard": orchard,
    "parking lot": parking_lot,
    "residential": residential,
    "river": river,
    "runway": runway,
    "storage tanks": storage_tanks,
}
