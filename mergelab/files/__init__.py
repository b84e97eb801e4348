"""What lies on disk or on the Hub: checkpoints, adapters, tokenizers. Knows no recipe and no method."""
