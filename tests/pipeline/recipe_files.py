"""Recipes of tests."""

from pathlib import Path

import yaml

RECIPES = Path(__file__).resolve().parents[2] / "launch" / "recipes"


def write_recipe(folder, **content):
    """`content` as recipe.yaml in `folder`; returns its path."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path
