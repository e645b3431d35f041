"""What builds the charts: copies of what they carry, and their READMEs."""
