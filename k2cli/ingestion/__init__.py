"""What brings records in and carries them."""
