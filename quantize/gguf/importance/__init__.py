"""llama.cpp's importance matrices: their files, and what a conversion takes from them."""
