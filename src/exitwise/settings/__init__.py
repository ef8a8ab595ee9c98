"""The settings of a run: schema, defaults, recipes, YAML. Needs no torch."""
