"""Process every notebook into a page of the book, as nbdev does before Quarto renders it; fail if one is missing or empty."""
import json, os, sys
from pathlib import Path

os.environ.setdefault("SAE_NOTEBOOKS_QUIET", "1")
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs


def main():
    refresh_quarto_yml()
    proc_nbs(force=True, n_workers=2)
    config = get_config()
    sources = [p.relative_to(config.nbs_path) for p in config.nbs_path.rglob("*.ipynb")]
    sources = [p for p in sources if not any(part.startswith((".", "_")) for part in p.parts)]
    missing = [str(p) for p in sources if not (page := config.config_path/"_proc"/p).exists() or not json.loads(page.read_text())["cells"]]
    print(f"{len(sources) - len(missing)} of {len(sources)} pages processed")
    for m in missing: print(f"missing or empty: {m}")
    return int(bool(missing) or not sources)


if __name__ == "__main__": sys.exit(main())
