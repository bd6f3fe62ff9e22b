"""What a user runs: train, bench, doctor, and the command line around them."""
