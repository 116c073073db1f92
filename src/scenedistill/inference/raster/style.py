"""Colours of the classes, and the QGIS style stored in a GeoPackage."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

Colour = tuple[int, int, int]


def class_colours(count: int) -> list[Colour]:
    """Return `count` colours (red, green, blue), 0..255; consecutive colours differ clearly."""
    found = []
    for number in range(count):
        hue = (0.58 + number * 0.618034) % 1  # steps of the golden ratio keep successive hues far apart
        light, strength = ((0.45, 0.75), (0.62, 0.6), (0.33, 0.65))[number % 3]
        found.append(colorsys.hls_to_rgb(hue, light, strength))
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in found]


def qgis_style(classes: Sequence[str], colours: Sequence[Colour]) -> str:
    """Return a QML document that fills polygons by their field `class`, half transparent."""
    categories, symbols = [], []
    for number, (name, colour) in enumerate(zip(classes, colours, strict=True)):
        value = quoteattr(name)
        categories.append(f'<category render="true" symbol="{number}" value={value} label={value} type="string"/>')
        symbols.append(_fill(number, ",".join(map(str, colour))))
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis version="3.22.0" styleCategories="Symbology">\n'
        '<renderer-v2 type="categorizedSymbol" attr="class" forceraster="0" symbollevels="0" enableorderby="0">\n'
        f"<categories>\n{chr(10).join(categories)}\n</categories>\n"
        f"<symbols>\n{chr(10).join(symbols)}\n</symbols>\n"
        "</renderer-v2>\n<blendMode>0</blendMode>\n<featureBlendMode>0</featureBlendMode>\n</qgis>\n"
    )


def _fill(number: int, colour: str) -> str:
    """Return the QML symbol of a class."""
    values = {
        "color": f"{colour},255",
        "outline_color": f"{colour},255",
        "outline_style": "solid",
        "outline_width": "0.1",
        "outline_width_unit": "MM",
        "style": "solid",
    }
    # QGIS before 3.26 reads <prop>, later ones <Option>
    options = "".join(f'<Option type="QString" name="{name}" value="{value}"/>' for name, value in values.items())
    props = "".join(f'<prop k="{name}" v="{value}"/>' for name, value in values.items())
    return (
        f'<symbol type="fill" name="{number}" alpha="0.5" clip_to_extent="1" force_rhr="0">'
        '<layer class="SimpleFill" enabled="1" locked="0" pass="0">'
        f'<Option type="Map">{options}</Option>{props}</layer></symbol>'
    )
