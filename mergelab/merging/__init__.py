"""The work itself: one tensor at a time, in order, on devices, into a folder."""
