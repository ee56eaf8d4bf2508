"""The commands of ``./lab``. No module here imports torch: each command imports what it needs when it runs."""
