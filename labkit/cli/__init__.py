"""What can be typed after ``./lab``, a file for each group of its help. None imports torch: a command imports what it needs."""
