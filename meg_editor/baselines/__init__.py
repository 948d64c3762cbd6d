"""Other editors, each after its own paper, with the signature of EasyEdit's methods."""
