"""A guided path through merging: chapters of steps, each a few sentences, a picture, and numbers that are computed.

Knows what is taught and what to measure for it; no widget. No number is typed into a sentence: it is measured on the
bundled experts when a step is opened, or read from answers that are shipped and that a test asks again.
"""
