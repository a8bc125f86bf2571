"""The pictures at the head of chapters are figures of the book, taken from the notebooks' outputs.

    python tests/pictures.py        write those that have changed (after a notebook was executed)

test_repository.py says which are out of date.
"""

import base64, json
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent / "nbs"

# picture → the notebook's number and the label of the cell
FIGURES = {
    "corpus": ("10", "fig-ordinals"),
    "docs": ("10b", "fig-seen"),
    "senses": ("11", "fig-senses"),
    "addresses": ("12a", "fig-keys"),
    "passes": ("12b", "fig-batches"),
    "shards": ("12c", "fig-flips"),
    "writing": ("12d", "fig-torn"),
    "store": ("12e", "fig-lookup"),
    "normalisation": ("13", "fig-dead-at-start"),
    "autoencoder": ("05", "fig-autoencoder"),
    "sparse": ("20a", "fig-saved"),
    "interop": ("20b", "fig-misread"),
    "training": ("21", "fig-quality"),
    "gradients": ("21a", "fig-profile"),
    "step": ("21b", "fig-killed"),
    "variance": ("22", "fig-demands"),
    "losses": ("22a", "fig-losses"),
    "detection": ("22b", "fig-choosing"),
    "metrics": ("22c", "fig-k-sparse"),
    "scaling": ("23", "fig-law"),
    "building": ("30a", "fig-time"),
    "orders": ("30b", "fig-orders"),
    "contexts": ("31a", "fig-controls"),
    "explanations": ("32", "fig-ratings"),
    "chat": ("32c", "fig-digits"),
    "endpoint": ("32d", "fig-requests"),
    "marks": ("32e", "fig-coverage"),
    "rating": ("32a", "fig-agreement"),
    "explains_gemma": ("32b", "fig-judges"),
    "neurons": ("33", "fig-pools"),
    "geometry": ("34", "fig-tree"),
    "completeness": ("35", "fig-curve"),
    "search": ("36", "fig-topics"),
    "workbook_model": ("90", "fig-facts"),
    "plots": ("91", "fig-style"),
    "sites": ("92", "fig-hook-sites"),
}


def figure(number: str, label: str) -> bytes:
    "The picture that a labelled cell of a notebook has left, as PNG."
    found = []
    for path in NBS.rglob(f"{number}_*.ipynb"):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if f"#| label: {label}\n" in "".join(cell["source"]):
                outputs = [o["data"] for o in cell["outputs"] if "data" in o]
                found += [d["image/png"] for d in outputs if "image/png" in d]
    assert len(found) == 1, f"{number}, {label}: {len(found)} pictures"
    return base64.b64decode("".join(found[0]))


def outdated() -> list[str]:
    "Pictures that are not what their notebook shows."
    kept = lambda name: NBS / "images" / f"{name}.png"
    return [
        name
        for name, where in FIGURES.items()
        if not kept(name).exists() or kept(name).read_bytes() != figure(*where)
    ]


if __name__ == "__main__":
    for name in outdated():
        (NBS / "images" / f"{name}.png").write_bytes(figure(*FIGURES[name]))
        print("written:", name)
