"""What predictions say when they are compared with others, or looked at by themselves."""
