"""Fill the gaps of a stream from the exchange's history."""
