"""How good it is: prompts, scores, sweeps, comparisons. Draws nothing."""
