"""The sheet on which a face is painted, to be laid over the head: its edges in head units, and its channels after red, green and blue."""

LEFT, TOP, RIGHT, BOTTOM = -1.15, -1.0, 1.15, 1.75
LIGHT = 3  # how much of the light reaches the place, 1 is all
NEUTRAL = 4  # how little it is like skin in the shade, 1 is not at all
GLOSS = 5
