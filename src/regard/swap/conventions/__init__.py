"""How attention modules of other people are built and called, one file for each way."""
