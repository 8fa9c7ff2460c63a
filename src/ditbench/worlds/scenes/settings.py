"""The constants of the scenes world, free of heavy imports."""

IMAGE_SIZE = 64
CHANNELS = 3
PATCH = 4
TOKENS = (IMAGE_SIZE // PATCH) ** 2
WIDTH = 192
HEADS = 3
BLOCKS = 8
# The world's second network, an MMDiT: narrower, for its blocks have weights for the image and as many for the text.
MMDIT_WIDTH = 144
MMDIT_HEADS = 3
MMDIT_BLOCKS = 8
TEXT_LENGTH = 20  # the longest caption has 17 words, and an end mark
TEXT_WIDTH = 128

# How the default run samples: DPM-Solver++ of second order over shifted flow levels.
STEPS = 10
GUIDANCE = 2.5
FLOW_SHIFT = 1.5
# Half precision is slower than single on every CPU without instructions for it: most of those this world runs on.
DTYPE = "float32"
