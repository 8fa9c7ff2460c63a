"""Files that hold captions: their formats, which of their captions are taken, and what they share with others."""
