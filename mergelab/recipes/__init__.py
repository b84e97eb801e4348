"""What is asked for: recipes, in mergekit's YAML both ways. Knows no file of weights."""
