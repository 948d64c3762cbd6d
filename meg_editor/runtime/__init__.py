"""What stages need of the machine: stored artifacts, processes, memory, precision, progress."""
