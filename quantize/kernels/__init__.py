"""Block quantizers behind one interface, and the binding to llama.cpp."""
