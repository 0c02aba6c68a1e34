"""What makes artifacts: one package for each library that quantizes."""
