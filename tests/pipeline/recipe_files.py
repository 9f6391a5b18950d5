"""Recipes of tests."""

import yaml


def write_recipe(folder, **content):
    """`content` as recipe.yaml in `folder`; returns its path."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path
