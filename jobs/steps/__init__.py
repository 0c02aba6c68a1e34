"""The kinds of steps, one file each: what it is told, where its output lies and when that is whole, how it
gets there."""
