"""Whether scorers agree: their scores collected, compared, and put into tables."""
