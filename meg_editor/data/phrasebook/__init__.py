"""Relations in many phrasings and prompt forms, to learn what asks for a fact."""
