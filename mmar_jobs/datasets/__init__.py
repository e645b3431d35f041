"""Foreign formats of questions and how they become records; no audio is read or fetched here."""
