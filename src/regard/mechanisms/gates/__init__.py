"""Channels and places of a map are weighed."""
