"""A large audio language model teaches itself to reason about sound, as a batch job to trust."""
