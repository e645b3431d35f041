"""The rubric score: a judge model reads the thinking of right answers and marks binary criteria."""
