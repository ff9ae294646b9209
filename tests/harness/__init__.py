"""What the whole-system tests stand on: programs, processes and clients."""
