"""What a recipe comes to with the files that it names: all checks, before any work is done."""
