"""What a run came to, and the page a person looks at."""
