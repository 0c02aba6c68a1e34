"""What comes after an artifact: files for other programs, a server, a page to chat on."""
