"""``regard explore``: a page on this machine on which a mechanism is chosen, changed, measured, and looked through.

A page of our own on Python's own HTTP server: it starts at once, needs nothing from any network, and each of its parts
can be reached by keyboard. :mod:`regard.explore.server` serves it; all that it shows is computed by the other modules.
"""
