"""What every artifact was made of."""
