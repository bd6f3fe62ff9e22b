"""`plait bench`: engines side by side on the same layers and graphs, checked before they are timed."""
