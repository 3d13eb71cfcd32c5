"""python -m sp_rerank.train.mini.drawings FOLDER

Picks the world's drawings out of four npm packages and writes one JSON file a style beside this module. FOLDER holds
the unpacked packages (`npm pack @iconify-json/noto@1.2.9` and so on, see SOURCES), one folder each.
A few seconds; the result is committed, so only a change of the objects needs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sp_rerank.train.mini.grammar import ACCESSORIES, OBJECTS

SOURCES = {
    "noto": ("1.2.9", "Apache-2.0"),
    "fluent-emoji-flat": ("1.2.6", "MIT"),
    "fluent-emoji": ("1.2.7", "MIT"),
    "fxemoji": ("1.2.2", "Apache-2.0"),
}
NAMES = {
    "apple": "red-apple",
    "cat": "cat-face",
    "pig": "pig-face",
    "ladybug": "lady-beetle",
    "teddy bear": "teddy-bear",
    "chick": "front-facing-baby-chick",
    "whale": "spouting-whale",
    "car": "automobile",
    "snowman": "snowman-without-snow",
    "top hat": "top-hat",
}
FXEMOJI_NAMES = {
    "apple": "redapple",
    "cat": "cat",
    "panda": "pandaface",
    "pig": "pig",
    "chick": "frontfacingchick",
    "whale": "spurtingwhale",
    "sunglasses": "darksunglasses",
}
# drawn with a background of its own, or as another thing than in the other styles
LEFT_OUT = {"fxemoji": {"sailboat", "umbrella", "guitar", "teddy bear", "skateboard", "robot"}}


def svg(package: dict, name: str) -> str:
    """One icon of an iconify package as an SVG document.

    Raises:
        KeyError: if the package has no icon of that name.
    """
    name = package.get("aliases", {}).get(name, {}).get("parent", name)
    icon = package["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, package.get(side, 16)) for side in ("width", "height"))
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    return f'{head}viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'


def pick(style: str, package: dict) -> dict:
    """The world's objects and accessories in one style, with where they come from."""
    version, licence = SOURCES[style]
    drawings = {}
    for name in (*OBJECTS, *ACCESSORIES):
        if name in LEFT_OUT.get(style, ()):
            continue
        icon = NAMES.get(name) or name
        if style == "fxemoji":
            icon = FXEMOJI_NAMES.get(name) or icon.replace("-", "")
        drawings[name] = svg(package, icon)
    return {"package": f"@iconify-json/{style}", "version": version, "licence": licence, "drawings": drawings}


def main(folder: Path) -> None:
    """Write one file a style; fails if a package has another version than SOURCES."""
    for style, (version, _) in SOURCES.items():
        source = next(folder.glob(f"iconify-json-{style}-{version}*/package/icons.json"))
        picked = pick(style, json.loads(source.read_text()))
        target = Path(__file__).with_name(f"{style}.json")
        target.write_text(json.dumps(picked, indent=0, ensure_ascii=False) + "\n")
        print(f"{target.name}: {len(picked['drawings'])} drawings, {target.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
