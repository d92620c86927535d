"""One module per stage: what its data is and how it speaks. The training loop is the same for all (``trainer``)."""
