"""Pure mathematics: tensors in, tensors out. A line belongs here if it names no paper's method, no file, no device."""
