"""Questions to a finished run: what a cell is, what differs between two, which arm to take, whether it still holds."""
