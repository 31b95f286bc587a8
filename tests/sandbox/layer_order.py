"""Whether a layer store is in order."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ramify.planes.sandbox.layer_index import read_image, read_layer


def disorder(store: Path, engines: Iterable[str] = ()) -> list[str]:
    """What is not as it should be in a store that was just swept: references, records, leftovers.

    `engines` are the live ones.
    """
    wrong: list[str] = []
    layers, images = store / "layers", store / "images"
    for layer in layers.iterdir():
        record = read_layer(store, layer.name)
        if record is None or not (layer / "diff").is_dir():
            wrong.append(f"the layer {layer.name} is incomplete")
            continue
        holders = os.listdir(layer / "refs")
        if not holders:
            wrong.append(f"nobody needs the layer {layer.name}")
        for holder in holders:
            kind, _, name = holder.partition("-")
            above = read_layer(store, name) if kind == "l" else None
            image = read_image(store, name) if kind == "i" else None
            ok = {
                "l": above is not None and above.below == layer.name,
                "i": image is not None and image.layers[0] == layer.name,
                "s": name.partition("-")[0] in set(engines),
            }[kind]
            if not ok:
                wrong.append(f"{holder} of the layer {layer.name} is no holder")
        if record.below and not (layers / record.below / "refs" / f"l-{layer.name}").exists():
            wrong.append(f"{layer.name} does not keep {record.below}")
    for path in images.iterdir():
        image = read_image(store, path.stem)
        if image is None:
            wrong.append(f"{path.name} is no image")
            continue
        if not (layers / image.layers[0] / "refs" / f"i-{image.id}").exists():
            wrong.append(f"the image {image.id} does not keep its layer")
        stack = [*image.layers, None]
        for one, below in zip(stack, stack[1:], strict=False):
            record = read_layer(store, one) if one else None
            if record is None or record.below != below:
                wrong.append(f"the image {image.id} stands on nothing at {one}")
    wrong += [f"left: {name}" for name in set(os.listdir(store / "engines")) - set(engines)]
    return wrong
