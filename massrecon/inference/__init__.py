"""From draws of a learned posterior to masses, intervals and their diagnosis."""
