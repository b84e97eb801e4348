"""Where the bundled experts lie, and what they are called: `family/name`, as in `numbers/french`."""

from pathlib import Path

_INSTALLED = Path(__file__).resolve().parent / "assets"  # inside a wheel
ASSETS = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parent.parent / "assets"


def bundled() -> dict[str, Path]:
    """Every bundled model and adapter: its name -> its folder, the base of each family first."""
    folders = {
        config.parent for name in ("config.json", "adapter_config.json") for config in ASSETS.glob(f"*/*/{name}")
    }
    names = {f"{folder.parent.name}/{folder.name}": folder for folder in folders}
    return dict(sorted(names.items(), key=lambda item: (item[1].parent.name, item[1].name != "base", item[0])))
