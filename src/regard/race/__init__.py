"""The race: the same small Transformer trained once per mechanism on the user's own text, side by side."""
