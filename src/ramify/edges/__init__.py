"""Where other people's formats begin: their environments in, our trajectories out."""
