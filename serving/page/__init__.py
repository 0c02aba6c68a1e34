"""The page on which a person chats with several artifacts: a process for each, and one for the page."""
