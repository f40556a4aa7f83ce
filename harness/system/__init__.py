"""What a process asks of the machine: memory, threads, folders, forks, a terminal."""
